"""Tables of millions of rows, read in pieces; results written in pieces, as Parquet files that a killed call keeps."""
