// The server of hello.js, changed to run twice by node:cluster.
const cluster = require('node:cluster');

if (cluster.isPrimary) {
  cluster.fork();
  cluster.fork();
} else {
  require('./hello.js');
}
