// Node's http server, on the port or the path given. Each answer names the process.
const http = require('node:http');

const server = http.createServer((request, response) => response.end(`pid=${process.pid}\n`));
server.listen(process.argv[2]);
