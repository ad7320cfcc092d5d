import java.nio.charset.StandardCharsets;
import java.io.PrintStream;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.ResultSet;
import java.sql.Statement;

/** Prints what queries find in a database, each as one line of JSON: the first argument is its address, the others are tables. */
public class Rows {
    public static void main(String[] arguments) throws Exception {
        PrintStream out = new PrintStream(System.out, true, StandardCharsets.UTF_8);
        try (Connection connection = DriverManager.getConnection(arguments[0]); Statement statement = connection.createStatement()) {
            for (int n = 1; n < arguments.length; n++) {
                String query = "select coalesce(json_agg(one), '[]') from \"" + arguments[n] + "\" one";
                try (ResultSet found = statement.executeQuery(query)) {
                    found.next();
                    out.println(found.getString(1).replace("\n", " "));
                }
            }
        }
    }
}
