"""``report.html``: ``page`` prepares the data, the templates beside it show them."""
