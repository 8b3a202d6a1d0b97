// Package streamtest gives tests a NATS server of their own: a real
// nats-server with JetStream inside the test's process, on a free port of the
// loopback interface and with its store in the test's temporary directory.
//
//	srv := streamtest.Start(t)
//	js := srv.JetStream(t)
//	…
//	for _, msg := range srv.Messages(t, "OUTBOX") { … }
//
// All is stopped and removed when the test ends. Stop and Restart make an
// outage: the server comes back on the same port with the same store.
//
// Every method fails the test rather than returning an error. The package is
// for tests only, of this project and of whoever uses it.
package streamtest
