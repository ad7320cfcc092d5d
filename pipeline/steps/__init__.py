"""The steps: plain functions, batch in, batch out. No Faust, no Kafka, no AWS."""
