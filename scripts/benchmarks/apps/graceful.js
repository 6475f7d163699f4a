// The server of hello.js with what a reload asks of an app: told to end, it first answers what it has accepted. It
// takes $BENCH_BOOT seconds to boot, then adds its pid to the file $BENCH_READY. Each answer names the process.
const fs = require('node:fs');
const http = require('node:http');

const server = http.createServer((request, response) => response.end(`pid=${process.pid}\n`));
const end = () => server.close(() => process.exit());
process.on('SIGTERM', end);
process.on('SIGINT', end); // pm2's

setTimeout(() => {
  server.listen(process.argv[2], () => fs.appendFileSync(process.env.BENCH_READY, `${process.pid}\n`));
}, 1000 * process.env.BENCH_BOOT);
