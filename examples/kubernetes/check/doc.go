// Package check tests the manifests and the chart of examples/kubernetes, and the alert rules and the dashboard of
// examples/observability, with neither a cluster nor a network:
//
//   - every object is decoded strictly into the type that Kubernetes, or the Prometheus operator, declares for it;
//   - pods keep the Pod Security Standards' level "restricted"; selectors, ports and names fit each other;
//   - the chart passes helm's linter, refuses wrong values, and renders settings that the relay takes;
//   - the alert rules are evaluated by Prometheus' own engine;
//   - the containers run: the real outbox-relay, as a process with the command, environment, files, user and probes of the
//     manifest, with a real Postgres whose roles have the printed GRANTs only, and a cluster of three nats-servers.
//
// It is a module of its own, so that whoever uses the library has none of these dependencies.
package check
