"""The steps of publishing: what may be sent, under which name, what is there already, and what went wrong."""
