"""Who we are and who the other end is: SVIDs, trust bundles, the Workload API, TLS. May import `core`, `protos`, `spiffe`, `unix`, `errors`.

certificates, svid, bundle    X.509 and the rules of SPIFFE, parsed and checked
verify                        whether the other end is who it says
source                        one pair of SVID and bundles at a time, replaced as a whole
endpoint, stream, response    the Workload API: its address, one stream, one answer
rotation, workload_api        the client that follows it
keyfile, tls                  contexts that judge the peer inside of the handshake
"""
