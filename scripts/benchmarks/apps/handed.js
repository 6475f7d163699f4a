// The server of hello.js, changed to take the listener that it is handed.
const http = require('node:http');

http.createServer((request, response) => response.end('hello\n')).listen({fd: 3});
