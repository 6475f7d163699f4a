import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;

/** The JDK's HttpServer on the port given. Each answer names the process. */
public class Server {
    public static void main(String[] arguments) throws Exception {
        HttpServer server = HttpServer.create(new InetSocketAddress(Integer.parseInt(arguments[0])), 0);
        byte[] body = ("pid=" + ProcessHandle.current().pid() + "\n").getBytes();
        server.createContext("/", exchange -> {
            exchange.sendResponseHeaders(200, body.length);
            exchange.getResponseBody().write(body);
            exchange.close();
        });
        server.start();
    }
}
