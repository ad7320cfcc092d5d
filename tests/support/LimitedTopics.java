import java.util.Map;
import org.apache.kafka.common.errors.PolicyViolationException;
import org.apache.kafka.server.policy.CreateTopicPolicy;

/** Refuses topics for records above 8 MiB, in the words of a managed cluster; and those named "no.", whatever their size. */
public class LimitedTopics implements CreateTopicPolicy {
    private static final String NAME = "max.message.bytes";
    private static final long MOST = 8L << 20;

    @Override
    public void configure(Map<String, ?> configs) {}

    @Override
    public void validate(RequestMetadata topic) {
        if (topic.topic().startsWith("no.")) {
            throw new PolicyViolationException("Topics of this name are not made here.");
        }
        String value = topic.configs().get(NAME);
        if (value != null && Long.parseLong(value) > MOST) {
            throw new PolicyViolationException(
                "Config property '" + NAME + "' with value '" + value + "' exceeded max limit of " + MOST + ".");
        }
    }

    @Override
    public void close() {}
}
