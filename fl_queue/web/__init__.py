"""
The page and the JSON API of ``fl-queue web`` (extra ``web``). Only that command imports it.

It holds no state: what it shows is read from Redis, what it starts is what ``start-round`` starts.

    tokens      made, or read from a file
    access      who may do what: tokens and cookies
    limits      wrong tokens and open pages, for each visitor and in all
    security    what is refused: other hosts and sites, no token, a body too large; the headers of every answer
    connection  the store, again after an outage
    view_model  what the page shows, as JSON
    event_feed  server-sent events: news of the event streams, to every open page
    api         /api/v1
    prometheus  /metrics, for Prometheus
    pages       the HTML, and what a plain HTTP client gets
    launch      runs that a page starts
    server      the server
"""
