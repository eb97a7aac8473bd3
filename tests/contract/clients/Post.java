import java.io.ByteArrayOutputStream;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublisher;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.file.Files;
import java.nio.file.Path;

/** Posts an image in each way that java.net.http has, with its default client: it offers HTTP/2 by Upgrade. */
public class Post {
    public static void main(String[] arguments) throws Exception {
        URI address = URI.create(arguments[0]);
        byte[] image = Files.readAllBytes(Path.of(arguments[1]));
        HttpClient client = HttpClient.newHttpClient();
        ByteArrayOutputStream form = new ByteArrayOutputStream();
        form.write("--b\r\nContent-Disposition: form-data; name=\"image\"; filename=\"a\"\r\n\r\n".getBytes());
        form.write(image);
        form.write("\r\n--b--\r\n".getBytes());
        BodyPublisher chunked = BodyPublishers.ofInputStream(() -> new java.io.ByteArrayInputStream(image));
        send(client, address, "image/png", BodyPublishers.ofByteArray(image), false);
        send(client, address, "multipart/form-data; boundary=b", BodyPublishers.ofByteArray(form.toByteArray()), false);
        send(client, address, "image/png", chunked, false);
        send(client, address, "image/png", BodyPublishers.ofByteArray(image), true);
    }

    static void send(HttpClient client, URI address, String type, BodyPublisher body, boolean expect) throws Exception {
        HttpRequest request = HttpRequest.newBuilder(address).header("Content-Type", type)
            .POST(body).expectContinue(expect).build();
        System.out.println(client.send(request, BodyHandlers.ofString()).body());
    }
}
