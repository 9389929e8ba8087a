"""The local page that browses what the policy wrote: its files, and the server that shows them."""
