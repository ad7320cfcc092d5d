import com.fasterxml.jackson.databind.DeserializationFeature;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.JsonNodeFactory;
import com.google.protobuf.ByteString;
import com.google.protobuf.Descriptors.Descriptor;
import com.google.protobuf.Descriptors.FieldDescriptor;
import com.google.protobuf.DynamicMessage;
import com.google.protobuf.Message;
import com.squareup.wire.schema.internal.parser.ProtoFileElement;
import com.squareup.wire.schema.internal.parser.ProtoParser;
import io.apicurio.registry.utils.protobuf.schema.FileDescriptorUtils;
import java.io.IOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.ConcurrentHashMap;
import org.apache.kafka.connect.data.Decimal;
import org.apache.kafka.connect.data.Field;
import org.apache.kafka.connect.data.Schema;
import org.apache.kafka.connect.data.SchemaAndValue;
import org.apache.kafka.connect.data.SchemaBuilder;
import org.apache.kafka.connect.data.Struct;
import org.apache.kafka.connect.errors.DataException;
import org.apache.kafka.connect.storage.Converter;

/**
 * Reads the wire format of Confluent's serializers for Kafka Connect, by the rules of Confluent's converters for Protobuf (with
 * enhanced.protobuf.schema.support and optional.for.nullables) and JSON Schema: those are on no registry of packages.
 */
public abstract class RegistryConverter<S> implements Converter {
    static final ObjectMapper JSON = new ObjectMapper()
            .setNodeFactory(JsonNodeFactory.withExactBigDecimals(true))
            .enable(DeserializationFeature.USE_BIG_DECIMAL_FOR_FLOATS);
    private final Map<Integer, S> known = new ConcurrentHashMap<>();
    private final HttpClient client = HttpClient.newHttpClient();
    private String url;

    @Override
    public void configure(Map<String, ?> configs, boolean isKey) {
        url = (String) configs.get("schema.registry.url");
    }

    @Override
    public byte[] fromConnectData(String topic, Schema schema, Object value) {
        throw new UnsupportedOperationException("it reads only");
    }

    @Override
    public SchemaAndValue toConnectData(String topic, byte[] content) {
        if (content == null) {
            return SchemaAndValue.NULL;
        }
        ByteBuffer rest = ByteBuffer.wrap(content);
        if (rest.get() != 0) {
            throw new DataException("not in the wire format of a schema registry");
        }
        S schema = known.computeIfAbsent(rest.getInt(), id -> parse(text(id)));
        try {
            return read(schema, rest);
        } catch (IOException error) {
            throw new DataException(error);
        }
    }

    private String text(int id) {
        try {
            HttpRequest ask = HttpRequest.newBuilder(URI.create(url + "/schemas/ids/" + id)).build();
            return JSON.readTree(client.send(ask, BodyHandlers.ofString()).body()).get("schema").asText();
        } catch (IOException | InterruptedException error) {
            throw new DataException(error);
        }
    }

    abstract S parse(String text);

    abstract SchemaAndValue read(S schema, ByteBuffer rest) throws IOException;

    static byte[] bytes(ByteBuffer rest) {
        byte[] found = new byte[rest.remaining()];
        rest.get(found);
        return found;
    }

    /** Protobuf: a message is a struct of its full name. */
    public static class Protobuf extends RegistryConverter<Descriptor> {
        @Override
        Descriptor parse(String text) {
            try {
                ProtoFileElement file = ProtoParser.Companion.parse(FileDescriptorUtils.DEFAULT_LOCATION, text);
                return FileDescriptorUtils.protoFileToFileDescriptor(file).getMessageTypes().get(0);
            } catch (Exception error) {
                throw new DataException(error);
            }
        }

        @Override
        SchemaAndValue read(Descriptor descriptor, ByteBuffer rest) throws IOException {
            if (rest.get() != 0) {
                throw new DataException("another message than the first of the file");
            }
            Schema schema = schema(descriptor).build();
            return new SchemaAndValue(schema, struct(schema, DynamicMessage.parseFrom(descriptor, bytes(rest))));
        }

        private static SchemaBuilder schema(Descriptor descriptor) {
            SchemaBuilder builder = SchemaBuilder.struct().name(descriptor.getFullName());
            for (FieldDescriptor field : descriptor.getFields()) {
                SchemaBuilder one = schema(field);
                if (field.isRepeated()) {
                    one = SchemaBuilder.array(one.build()).optional();
                } else if (field.hasPresence()) {
                    one.optional();
                }
                builder.field(field.getName(), one.build());
            }
            return builder;
        }

        private static SchemaBuilder schema(FieldDescriptor field) {
            return switch (field.getType()) {
                case STRING -> SchemaBuilder.string();
                case BYTES -> SchemaBuilder.bytes();
                case BOOL -> SchemaBuilder.bool();
                case INT64 -> SchemaBuilder.int64();
                case MESSAGE -> schema(field.getMessageType());
                default -> throw new DataException("no type of Headwater: " + field);
            };
        }

        private static Struct struct(Schema schema, Message message) {
            Struct found = new Struct(schema);
            for (FieldDescriptor field : message.getDescriptorForType().getFields()) {
                Schema type = schema.field(field.getName()).schema();
                Object value = null;
                if (field.isRepeated()) {
                    List<Object> values = new ArrayList<>();
                    for (Object one : (List<?>) message.getField(field)) {
                        values.add(value(type.valueSchema(), one));
                    }
                    value = values.isEmpty() ? null : values; // DynamoDB has no empty sets
                } else if (!field.hasPresence() || message.hasField(field)) {
                    value = value(type, message.getField(field));
                }
                found.put(field.getName(), value);
            }
            return found;
        }

        private static Object value(Schema schema, Object value) {
            if (value instanceof Message message) {
                return struct(schema, message);
            }
            return value instanceof ByteString content ? content.toByteArray() : value;
        }
    }

    /** JSON Schema: an object is a struct of its title, `connect.type` and its like say what JSON cannot. */
    public static class JsonSchema extends RegistryConverter<Schema> {
        @Override
        Schema parse(String text) {
            try {
                return schema(JSON.readTree(text), false);
            } catch (IOException error) {
                throw new DataException(error);
            }
        }

        @Override
        SchemaAndValue read(Schema schema, ByteBuffer rest) throws IOException {
            return new SchemaAndValue(schema, value(schema, JSON.readTree(bytes(rest))));
        }

        private static Schema schema(JsonNode node, boolean optional) {
            if (node.has("oneOf")) {
                return schema(node.get("oneOf").get(1), true);
            }
            boolean isBytes = node.path("connect.type").asText().equals("bytes");
            SchemaBuilder builder = switch (node.path("type").asText()) {
                case "object" -> struct(node);
                case "array" -> SchemaBuilder.array(schema(node.get("items"), false));
                case "string" -> isBytes ? SchemaBuilder.bytes() : SchemaBuilder.string();
                case "boolean" -> SchemaBuilder.bool();
                case "integer" -> SchemaBuilder.int64();
                case "number" -> isBytes ? SchemaBuilder.bytes() : SchemaBuilder.float64();
                default -> throw new DataException("Unsupported schema type " + node);
            };
            if (node.has("title")) {
                builder.name(node.get("title").asText());
            }
            if (node.has("connect.version")) {
                builder.version(node.get("connect.version").asInt());
            }
            node.path("connect.parameters").fields().forEachRemaining(one -> builder.parameter(one.getKey(), one.getValue().asText()));
            return optional ? builder.optional().build() : builder.build();
        }

        private static SchemaBuilder struct(JsonNode node) {
            TreeMap<Integer, String> names = new TreeMap<>();
            node.get("properties").fields().forEachRemaining(
                    one -> names.put(one.getValue().get("connect.index").asInt(), one.getKey()));
            SchemaBuilder builder = SchemaBuilder.struct();
            names.values().forEach(name -> builder.field(name, schema(node.get("properties").get(name), false)));
            return builder;
        }

        private static Object value(Schema schema, JsonNode node) throws IOException {
            if (node == null || node.isNull()) {
                return null;
            }
            return switch (schema.type()) {
                case STRUCT -> {
                    Struct found = new Struct(schema);
                    for (Field field : schema.fields()) {
                        found.put(field, value(field.schema(), node.get(field.name())));
                    }
                    yield found;
                }
                case ARRAY -> {
                    List<Object> found = new ArrayList<>();
                    for (JsonNode one : node) {
                        found.add(value(schema.valueSchema(), one));
                    }
                    yield found;
                }
                case BYTES -> Decimal.LOGICAL_NAME.equals(schema.name()) ? node.decimalValue() : node.binaryValue();
                case BOOLEAN -> node.booleanValue();
                case INT64 -> node.longValue();
                case STRING -> node.textValue();
                default -> throw new DataException("no type of Headwater: " + schema);
            };
        }
    }
}
