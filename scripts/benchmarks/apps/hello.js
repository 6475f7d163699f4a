// The unmodified server: it binds its port by itself.
const http = require('node:http');

http.createServer((request, response) => response.end('hello\n')).listen(process.argv[2]);
