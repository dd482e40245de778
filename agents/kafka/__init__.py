"""What speaks to Kafka: topics, clients, records in and out, and the Faust transport."""
