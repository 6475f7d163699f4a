// The server of hello.js, which on SIGUSR2 also adds a line to the file $BENCH_COUNTS: how many connections and
// requests it has had since the last time.
const fs = require('node:fs');
const http = require('node:http');

let connections = 0;
let requests = 0;

const server = http.createServer((request, response) => {
  requests += 1;
  response.end('hello\n');
});
server.on('connection', () => (connections += 1));
process.on('SIGUSR2', () => {
  fs.appendFileSync(process.env.BENCH_COUNTS, `${connections} ${requests}\n`);
  connections = requests = 0;
});
server.listen(process.argv[2]);
