"""The embedded control plane: Istio YAML in, xDS and identities out. Never imports `core`, `xds`, `engine` or `runtime`.

manifest                        YAML to typed resources, checked
configuration, watch            a directory of them as one value; when it changes
registry, hosts                 what can be called
translate                       all of that to Envoy's resources, for one node
views, subscriptions, ads       what each client sees, has, and is sent
registration                    workloads that announce themselves
authority, jwt_svid, workload_api   the development CA and its SPIFFE Workload API
transport, server               sockets, TLS, and everything joined
"""
