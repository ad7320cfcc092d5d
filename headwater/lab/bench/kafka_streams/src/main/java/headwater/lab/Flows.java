package headwater.lab;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.nio.charset.StandardCharsets;
import java.util.Properties;
import org.apache.kafka.common.header.Headers;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.Topology;
import org.apache.kafka.streams.processor.api.Processor;
import org.apache.kafka.streams.processor.api.ProcessorContext;
import org.apache.kafka.streams.processor.api.Record;

/** Passes changes on with six headers, all or those that a filter takes. Arguments: servers, group, input, output, directory, task. */
public final class Flows implements Processor<byte[], byte[], byte[], byte[]> {
  private static final ObjectMapper JSON = new ObjectMapper();
  private final boolean filters;
  private ProcessorContext<byte[], byte[]> context;

  Flows(boolean filters) {
    this.filters = filters;
  }

  @Override
  public void init(ProcessorContext<byte[], byte[]> context) {
    this.context = context;
  }

  @Override
  public void process(Record<byte[], byte[]> record) {
    JsonNode change;
    try {
      change = JSON.readTree(record.value());
    } catch (java.io.IOException error) {
      throw new java.io.UncheckedIOException(error);
    }
    JsonNode body = change.get("dynamodb");
    String name = change.get("eventName").textValue();
    if (filters
        && !(name.equals("MODIFY")
            && "paid".equals(body.path("NewImage").path("status").path("S").textValue()))) {
      return;
    }
    Headers headers = record.headers();
    add(headers, "event_id", change.get("eventID").textValue());
    add(headers, "table", change.get("eventSourceARN").textValue().split("/")[1]);
    add(headers, "op", name.equals("INSERT") ? "c" : name.equals("MODIFY") ? "u" : "d");
    add(headers, "source", "dynamodb-stream");
    add(headers, "ts_us", Long.toString(body.get("ApproximateCreationDateTime").longValue() * 1_000_000));
    add(headers, "sequence", body.get("SequenceNumber").textValue());
    context.forward(record);
  }

  private static void add(Headers headers, String name, String value) {
    headers.add(name, value.getBytes(StandardCharsets.UTF_8));
  }

  public static void main(String[] args) {
    Properties settings = new Properties();
    settings.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, args[0]);
    settings.put(StreamsConfig.APPLICATION_ID_CONFIG, args[1]);
    settings.put(StreamsConfig.STATE_DIR_CONFIG, args[4]);
    settings.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.EXACTLY_ONCE_V2);
    settings.put(StreamsConfig.COMMIT_INTERVAL_MS_CONFIG, 100);
    settings.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, 1);
    settings.put(StreamsConfig.REPLICATION_FACTOR_CONFIG, 1);
    settings.put(StreamsConfig.producerPrefix("compression.type"), "lz4");
    settings.put(StreamsConfig.consumerPrefix("auto.offset.reset"), "earliest");

    boolean filters = args[5].equals("pattern_filter");
    Topology topology = new Topology();
    topology.addSource("in", new ByteArrayDeserializer(), new ByteArrayDeserializer(), args[2]);
    topology.addProcessor("flow", () -> new Flows(filters), "in");
    topology.addSink("out", args[3], new ByteArraySerializer(), new ByteArraySerializer(), "flow");

    KafkaStreams streams = new KafkaStreams(topology, settings);
    Runtime.getRuntime().addShutdownHook(new Thread(streams::close));
    streams.start();
  }
}
