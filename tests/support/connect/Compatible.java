import java.nio.file.Files;
import java.nio.file.Path;
import org.apache.avro.Schema;
import org.apache.avro.SchemaCompatibility;

/** Says, as a registry does (BACKWARD), whether a reader with the schema in the first file reads what the second one wrote. */
public class Compatible {
    public static void main(String[] arguments) throws Exception {
        Schema reader = new Schema.Parser().parse(Files.readString(Path.of(arguments[0])));
        Schema writer = new Schema.Parser().parse(Files.readString(Path.of(arguments[1])));
        System.out.println(SchemaCompatibility.checkReaderWriterCompatibility(reader, writer).getType());
        System.out.println(reader); // as a registry keeps it
    }
}
