"""Formats with a schema: Avro, Protobuf, JSON Schema, in the wire format of Confluent's serializers. Pure.

What is written is a *document*: members with values in DynamoDB's typed form. Its *shape* says of each member which kind of
value it has, and only ever grows: members are added, and where the setting says so a member becomes wide enough for text.
Every member may be missing, so that a newer schema reads what an older one wrote.
"""
