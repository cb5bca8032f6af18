"""The words that processes share: protobuf files, their generated code, and its translation to the model."""
