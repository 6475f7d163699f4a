# WEBrick on the port given, as its documentation starts it. Each answer names the process.
require "webrick"

server = WEBrick::HTTPServer.new(Port: Integer(ARGV[0]), AccessLog: [])
server.mount_proc("/") { |_request, response| response.body = "pid=#{Process.pid}\n" }
trap("INT") { server.shutdown }
trap("TERM") { server.shutdown }
server.start
