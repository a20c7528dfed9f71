"""8 bits per weight, one scale for each row: a third-party weight format of quantlora."""
