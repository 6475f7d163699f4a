# A Rack application. Each answer names the process.
run ->(_environment) { [200, { "content-type" => "text/plain" }, ["pid=#{Process.pid}\n"]] }
