// Node's http server on the port given, with what a reload asks of an app. Told to end, it answers `Connection: close` for
// a moment, so that clients which keep their connections let go of them, then accepts no more and ends when all that it
// has accepted is answered. Each answer names the process.
const http = require('node:http');

let ending = false;
const server = http.createServer((request, response) => {
  if (ending) response.setHeader('connection', 'close');
  response.end(`pid=${process.pid}\n`);
});
server.listen(process.argv[2]);

process.on('SIGTERM', () => {
  ending = true;
  setTimeout(() => server.close(() => process.exit()), 100);
});
