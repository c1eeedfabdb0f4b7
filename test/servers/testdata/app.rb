# What Rails' router makes of paths and methods. Prints its port.
require "logger"
require "action_dispatch"
require "rack"
require "webrick"
require "rack/handler/webrick"
said = ->(text) { ->(_env) { [200, { "Content-Type" => "text/plain" }, [text]] } }
routes = ActionDispatch::Routing::RouteSet.new
routes.draw do
  get "v1/items/admin", to: said["FORBIDDEN"]
  get "v1/items/admin/*rest", to: said["FORBIDDEN"]
  get "v1/secrets/*rest", to: said["FORBIDDEN"]
  get "v1/items/:name", to: said["allowed"]
  post "v1/items/:name", to: said["allowed"]
  delete "v1/items/:name", to: said["FORBIDDEN"]
end
app = Rack::Builder.new do
  use Rack::MethodOverride
  run routes
end
server = WEBrick::HTTPServer.new(BindAddress: "127.0.0.1", Port: 0, Logger: WEBrick::Log.new(File::NULL), AccessLog: [])
server.mount "/", Rack::Handler::WEBrick, app.to_app
trap("TERM") { server.shutdown }
$stdout.puts server.listeners[0].addr[1]
$stdout.flush
server.start
