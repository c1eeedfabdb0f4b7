import java.net.HttpURLConnection;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;

/** Gets a URL with both of Java's own clients and prints status, version and body of each. */
public final class Fetch {
    public static void main(String[] args) throws Exception {
        if (args.length == 0) {
            System.err.println("usage: jfetch URL [NAME=VALUE header]...");
            System.exit(2);
        }
        HttpRequest.Builder request = HttpRequest.newBuilder(URI.create(args[0]));
        HttpURLConnection old = (HttpURLConnection) URI.create(args[0]).toURL().openConnection();
        for (int i = 1; i < args.length; i++) {
            String[] header = args[i].split("=", 2);
            request.header(header[0], header[1]);
            old.setRequestProperty(header[0], header[1]);
        }
        HttpResponse<String> response = HttpClient.newHttpClient().send(request.build(), HttpResponse.BodyHandlers.ofString());
        System.out.println(response.statusCode() + " " + response.version());
        System.out.println(response.body());

        int status = old.getResponseCode();
        System.out.println(status + " HttpURLConnection");
        var body = status < 400 ? old.getInputStream() : old.getErrorStream();
        if (body != null) {
            System.out.println(new String(body.readAllBytes(), "UTF-8"));
        }
    }
}
