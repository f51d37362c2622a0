"""Publishing a converted directory on the Hub."""
