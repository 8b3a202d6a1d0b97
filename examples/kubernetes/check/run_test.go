package check

import (
	"context"
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
)

// patience is how long anything may take that is not the subject of a test.
const patience = time.Minute

// system is what a test runs: the pods of an installation, and the contents of its Secrets and ConfigMaps.
type system struct {
	*servers

	objects []object
	// The names of the Secrets.
	relaySecret, natsSecret, tlsSecret, ownerSecret string
	files                                           map[string]map[string]string
}

func newSystem(t *testing.T, objects []object, names system) *system {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("containers run on Linux")
	}
	s := &names
	s.servers, s.objects = newServers(t, names.tlsSecret != ""), objects
	s.files = map[string]map[string]string{
		s.relaySecret: {"dsn": s.dsn("outbox_relay", relayPassword), "ca.crt": s.ca.cert},
		s.ownerSecret: {"dsn": s.dsn("outbox_migrator", ownerPassword), "ca.crt": s.ca.cert},
		s.natsSecret:  {"url": s.natsURL()},
	}
	if s.tls {
		cert, key := s.ca.issue(t, "outbox_relay")
		s.files[s.tlsSecret] = map[string]string{"ca.crt": s.ca.cert, "tls.crt": cert, "tls.key": key}
	}
	for _, c := range all[*corev1.ConfigMap](objects) {
		s.files[c.Name] = c.Data
	}
	// What an administrator of the database does.
	s.sql("postgres", "", read(t, filepath.Join(manifests, "roles.sql")))
	for role, password := range map[string]string{"outbox_relay": relayPassword, "outbox_migrator": ownerPassword, "outbox_producer": producerPassword} {
		s.setPassword(role, password)
	}
	return s
}

func (s *system) setPassword(role, password string) {
	s.Helper()
	s.sql("postgres", "", fmt.Sprintf(`alter role %q password '%s'`, role, strings.ReplaceAll(password, "'", "''")))
}

func (s *system) container(component string) *container {
	s.Helper()
	all := pods(s.objects)
	i := slices.IndexFunc(all, func(p pod) bool { return p.component == component })
	if i < 0 {
		s.Fatalf("there is no pod %s", component)
	}
	return newContainer(s.TB, all[i], s.files)
}

// insert inserts an event as the producers' role.
func (s *system) insert(aggregate string) {
	s.Helper()
	s.sql("outbox_producer", producerPassword, `select outbox_emit('orders', 'Order', $1, 'OrderPaid', '{"paid":true}')`, aggregate)
}

// arrives waits for an event in the stream, and that it is there once.
func (s *system) arrives(aggregate string) {
	s.Helper()
	subject := "outbox.orders.Order." + aggregate
	js := s.nats[0].JetStream(s.TB, s.options...)
	eventually(s.TB, patience, func() (bool, string) {
		ctx, cancel := context.WithTimeout(s.Context(), 5*time.Second)
		defer cancel()
		stream, err := js.Stream(ctx, "OUTBOX")
		if err != nil {
			return false, err.Error()
		}
		info, err := stream.Info(ctx, jetstream.WithSubjectFilter("outbox.>"))
		if err != nil {
			return false, err.Error()
		}
		return info.State.Subjects[subject] == 1, fmt.Sprintf("the stream has %v", info.State.Subjects)
	})
}

// The five steps of README.md with the manifests as they are.
func TestManifestsRun(t *testing.T) {
	t.Parallel()
	testRun(t, newSystem(t, slices.Concat(kustomize(t, "relay"), kustomize(t, "migrate")), system{
		relaySecret: "outbox-relay-postgres", ownerSecret: "outbox-migrate-postgres", natsSecret: "outbox-relay-nats",
	}))
}

// With a user of the cluster's choice, NATS with certificates, and a stream that somebody else has made.
func TestComponentsRun(t *testing.T) {
	t.Parallel()
	s := newSystem(t, slices.Concat(kustomize(t, "relay", "nats-tls", "openshift", "monitoring"), kustomize(t, "migrate", "openshift")), system{
		relaySecret: "outbox-relay-postgres", ownerSecret: "outbox-migrate-postgres", natsSecret: "outbox-relay-nats", tlsSecret: "outbox-relay-nats-tls",
	})
	spec := readStream(t).Spec
	config := jetstream.StreamConfig{
		Name: spec.Name, Subjects: spec.Subjects, Replicas: spec.Replicas, Duplicates: spec.DuplicateWindow.Duration,
		AllowDirect: spec.AllowDirect, AllowBatchPublish: spec.AllowBatched,
	}
	if err := config.Storage.UnmarshalJSON([]byte(`"` + spec.Storage + `"`)); err != nil {
		t.Fatal(err)
	}
	if err := config.Retention.UnmarshalJSON([]byte(`"` + spec.Retention + `"`)); err != nil {
		t.Fatal(err)
	}
	if err := config.Discard.UnmarshalJSON([]byte(`"` + spec.Discard + `"`)); err != nil {
		t.Fatal(err)
	}
	js := s.nats[0].JetStream(t, s.options...)
	eventually(t, patience, func() (bool, string) { // The cluster needs a moment to find together.
		_, err := js.CreateStream(t.Context(), config)
		return err == nil, fmt.Sprint(err)
	})
	testRun(t, s)
}

// The chart, with the Secrets' names of a release.
func TestChartRuns(t *testing.T) {
	t.Parallel()
	objects, _, err := helm(t, leastValues)
	if err != nil {
		t.Fatal(err)
	}
	s := newSystem(t, objects, system{relaySecret: "shop-postgres", ownerSecret: "shop-owner", natsSecret: "shop-nats"})
	testRun(t, s)
	if code := s.container("doctor").start().ends(patience); code != 0 {
		t.Errorf("helm test ends with %d", code)
	}
}

func testRun(t *testing.T, s *system) {
	t.Helper()
	first := s.container("relay")
	startup, live, ready := first.spec.StartupProbe, first.spec.LivenessProbe, first.spec.ReadinessProbe
	budget := time.Duration(startup.PeriodSeconds*startup.FailureThreshold) * time.Second

	// A relay that is there before its tables starts, lives, and is not ready: it waits.
	a := first.start()
	a.passes(startup, budget)
	notReady := func(because string) {
		t.Helper()
		eventually(t, patience, func() (bool, string) {
			good, body := a.probe(ready)
			if good {
				t.Fatalf("it is ready although %s", because)
			}
			return strings.Contains(body, because), body
		})
		if good, body := a.probe(live); !good {
			t.Errorf("it is to be restarted although %s: %s", because, body)
		}
	}
	notReady("the outbox table does not exist")

	// The relay's role cannot migrate, the owner's can, and may do it again.
	refused := newContainer(t, s.container("migrate").pod, with(s.files, s.ownerSecret, s.files[s.relaySecret])).start()
	if code := refused.ends(patience); code == 0 {
		t.Errorf("the relay's role made the tables:\n%s", &refused.output)
	}
	for range 2 {
		if code := s.container("migrate").start().ends(patience); code != 0 {
			t.Fatalf("the migration ends with %d", code)
		}
	}
	notReady("missing privilege")
	s.sql("outbox_migrator", ownerPassword, read(t, filepath.Join(manifests, "grants.sql")))
	a.passes(ready, patience)

	// The first of two: an event flows from the producer's role to the stream, and all is as it should be.
	s.insert("1")
	s.arrives("1")
	if code := first.start("/outbox-relay", "doctor").ends(patience); code != 0 {
		t.Errorf("the doctor's exit code is %d", code)
	}
	second := s.container("relay")
	b := second.start()
	b.passes(startup, budget)
	b.passes(ready, patience)
	if replicas := only[*appsv1.Deployment](t, s.objects).Spec.Replicas; *replicas != 2 {
		t.Errorf("%d relays, 2 were tried", *replicas)
	}

	// OutboxLeaderHung relies on it: a leader with nothing to do asks the outbox all the same.
	idle := a.metric("outbox_relay_round_trips_total")
	eventually(t, 30*time.Second, func() (bool, string) {
		now := a.metric("outbox_relay_round_trips_total")
		return now > idle, fmt.Sprintf("%v round trips, as before", now)
	})

	// A drain of the leader's node: the second goes on.
	a.stops()
	s.insert("2")
	s.arrives("2")
	b.passes(ready, patience)

	// A password that is replaced needs no restart.
	s.setPassword("outbox_relay", "another password")
	for _, v := range second.pod.spec.Volumes {
		if v.Secret != nil && v.Secret.SecretName == s.relaySecret {
			second.fill(v, map[string]string{"dsn": s.dsn("outbox_relay", "another password"), "ca.crt": s.ca.cert})
		}
	}
	s.files[s.relaySecret] = map[string]string{"dsn": s.dsn("outbox_relay", "another password"), "ca.crt": s.ca.cert}
	s.sql("postgres", "", `select pg_terminate_backend(pid) from pg_stat_activity where usename = 'outbox_relay'`)
	s.insert("3")
	s.arrives("3")
	b.passes(ready, patience)
	b.stops()

	for _, c := range []*container{first, second} {
		c.untouched()
	}
	for _, secret := range []string{relayPassword, "another password", natsPassword} {
		if text := a.output.String() + b.output.String(); strings.Contains(text, secret) {
			t.Errorf("the log has the password %q", secret)
		}
	}
}

// With a wrong Secret a relay is never ready, so a rollout stops before it takes a relay away. Nor may it be restarted.
func TestWrongSecretIsNotReady(t *testing.T) {
	t.Parallel()
	s := newSystem(t, slices.Concat(kustomize(t, "relay"), kustomize(t, "migrate")), system{
		relaySecret: "outbox-relay-postgres", ownerSecret: "outbox-migrate-postgres", natsSecret: "outbox-relay-nats",
	})
	if code := s.container("migrate").start().ends(patience); code != 0 {
		t.Fatalf("the migration ends with %d", code)
	}
	s.sql("outbox_migrator", ownerPassword, read(t, filepath.Join(manifests, "grants.sql")))
	template := s.container("relay").pod
	for name, files := range map[string]map[string]map[string]string{
		"Postgres": with(s.files, s.relaySecret, map[string]string{"dsn": s.dsn("outbox_relay", "wrong"), "ca.crt": s.ca.cert}),
		"NATS":     with(s.files, s.natsSecret, map[string]string{"url": strings.ReplaceAll(s.natsURL(), natsPassword, "wrong")}),
	} {
		c := newContainer(t, template, files).start()
		c.passes(c.spec.StartupProbe, patience)
		minReady := time.Duration(only[*appsv1.Deployment](t, s.objects).Spec.MinReadySeconds) * time.Second
		for deadline := time.Now().Add(minReady); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
			if good, body := c.probe(c.spec.ReadinessProbe); good {
				t.Fatalf("ready with a wrong password of %s: %s", name, body)
			}
			if good, body := c.probe(c.spec.LivenessProbe); !good {
				t.Fatalf("to be restarted with a wrong password of %s: %s", name, body)
			}
		}
		c.stops()
	}
}
