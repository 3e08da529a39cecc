"""Matchers over strings, headers, query parameters, paths and addresses, compiled once for each snapshot.

Sources: Envoy type.matcher.v3.StringMatcher, route.v3.HeaderMatcher, route.v3.RouteMatch; recorded behaviour of Envoy 1.40
(repeated headers are compared value by value, `user-agent` and `content-type` excepted).
"""
