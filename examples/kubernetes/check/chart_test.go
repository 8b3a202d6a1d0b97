package check

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"helm.sh/helm/v4/pkg/chart/v2/lint"
	"helm.sh/helm/v4/pkg/chart/v2/lint/support"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/go-outbox/go-outbox/config"
)

func TestLint(t *testing.T) {
	for _, values := range []string{leastValues, mostValues} {
		var given map[string]any
		if err := yaml.Unmarshal([]byte(values), &given); err != nil {
			t.Fatal(err)
		}
		result := lint.RunAll(chartDir, given, "outbox")
		for _, m := range result.Messages {
			if m.Severity >= support.WarningSev {
				t.Error(m.Error())
			}
		}
	}
}

// chartsOwn are settings that the chart sets itself, or that are of no use in a cluster.
var chartsOwn = []string{ //nolint:gochecknoglobals // Immutable.
	"database_dsn_file", "database_password_file", "nats_url_file", "nats_creds", "nats_nkey", "nats_tls_ca", "nats_tls_cert", "nats_tls_key",
	"http_addr", "nats_listen", "nats_store_dir",
}

// The schema has each setting of the relay, so that helm refuses one that is misspelt before anything is installed.
func TestSchemaHasAllSettings(t *testing.T) {
	file := filepath.Join(chartDir, "values.schema.json")
	var schema map[string]any
	if err := json.Unmarshal([]byte(read(t, file)), &schema); err != nil {
		t.Fatal(err)
	}
	properties(t, schema)["config"] = settingsSchema(t)
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(schema); err != nil {
		t.Fatal(err)
	}
	same(t, file, b.String())
}

func settingsSchema(t *testing.T) map[string]any {
	t.Helper()
	table := func() map[string]any {
		return map[string]any{"type": "object", "additionalProperties": false, "properties": map[string]any{}}
	}
	top := table()
	top["description"] = "Settings of relay.toml, without secrets; see config/README.md"
	for _, own := range chartsOwn {
		if !slices.ContainsFunc(config.Fields(), func(f config.Field) bool { return f.Key == own }) {
			t.Errorf("the relay has no setting %s", own)
		}
	}
	for _, f := range config.Fields() {
		if slices.Contains(chartsOwn, f.Key) {
			continue
		}
		into, key := properties(t, top), f.Key
		if name, rest, found := strings.Cut(f.Key, "."); found {
			if into[name] == nil {
				into[name] = table()
			}
			into, key = properties(t, into[name]), rest
		}
		setting := map[string]any{}
		switch { // Want says what a value is, in words that a person reads.
		case strings.HasPrefix(f.Want, "an integer"):
			setting["type"] = "integer"
			// Helm reads numbers as floating point. For a larger one there is extraEnv.
			setting["minimum"], setting["maximum"] = -1<<53, 1<<53
		case f.Want == "true or false":
			setting["type"] = "boolean"
		case strings.HasPrefix(f.Want, "a duration"):
			setting["type"], setting["pattern"] = "string", `^([0-9]+(\.[0-9]+)?(ns|us|µs|ms|s|m|h))+$`
		default:
			setting["type"] = "string"
		}
		switch f.Key {
		case "database_dsn":
			setting["not"] = map[string]any{"anyOf": []any{pattern(`://[^/@]*:[^/@]*@`), pattern(`(^|[ ?&])(password|sslpassword) *=`)}}
		case "nats_url":
			setting["not"] = map[string]any{"anyOf": []any{pattern(`://[^/@]*@`), pattern(`^embedded$`)}}
		}
		into[key] = setting
	}
	return top
}

// properties are those of an object's schema.
func properties(t *testing.T, of any) map[string]any {
	t.Helper()
	schema, ok := of.(map[string]any)
	found, has := schema["properties"].(map[string]any)
	if !ok || !has {
		t.Fatalf("no schema of an object: %v", of)
	}
	return found
}

func pattern(p string) map[string]any { return map[string]any{"pattern": p} }

func TestValuesAreRefused(t *testing.T) {
	if _, _, err := helm(t, leastValues); err != nil {
		t.Fatal(err)
	}
	for values, want := range map[string]string{
		"{}":                                                                              "existingSecret",
		"database: {existingSecret: x}":                                                   "existingSecret",
		leastValues + "\nreplicas: 2":                                                     "replicas",
		leastValues + "\nreplicaCount: two":                                               "replicaCount",
		leastValues + "\nconfig: {strcit: true}":                                          "strcit",
		leastValues + "\nconfig: {strict: \"yes\"}":                                       "strict",
		leastValues + "\nconfig: {relay: {retain: 5}}":                                    "retain",
		leastValues + "\nconfig: {relay: {retain: 5 minutes}}":                            "retain",
		leastValues + "\nconfig: {stream_replicas: 1.5}":                                  "stream_replicas",
		leastValues + "\nconfig: {advisory_lock: 9007199254740993000}":                    "advisory_lock",
		leastValues + "\nconfig: {http_addr: \":9090\"}":                                  "http_addr",
		leastValues + "\nconfig: {database_dsn: \"postgres://relay:secret@db/shop\"}":     "database_dsn",
		leastValues + "\nconfig: {database_dsn: \"host=db password=secret\"}":             "database_dsn",
		leastValues + "\nconfig: {nats_url: \"nats://token@nats:4222\"}":                  "nats_url",
		leastValues + "\nconfig: {nats_url: embedded}":                                    "nats_url",
		leastValues + "\nimage: {digest: latest}":                                         "digest",
		leastValues + "\nconfig: {election: {kind: none}}":                                "replicaCount to 1",
		leastValues + "\nresources: {limits: {memory: 256M}}":                             "Mi or Gi",
		strings.Replace(leastValues, "shop-postgres", "shop-postgres, passwordKey: p", 1): "config.database_dsn",
		strings.Replace(leastValues, "shop-owner", "shop-owner, passwordKey: p", 1):       "migration.dsn",
		strings.Replace(leastValues, "existingSecret: shop-nats", "", 1):                  "say where NATS is",
	} {
		if _, _, err := helm(t, values); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one about %s, with the values\n%s", err, want, values)
		}
	}
}

// What config says arrives in the relay: strings, numbers, truths and tables.
func TestSettingsArrive(t *testing.T) {
	objects, _, err := helm(t, mostValues)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "relay.toml")
	if err := os.WriteFile(file, []byte(named[*corev1.ConfigMap](t, objects, "shop-outbox").Data["relay.toml"]), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := config.Load(config.Sources{LookupEnv: func(name string) (string, bool) {
		return file, name == "CONFIG_PATH"
	}})
	if err != nil {
		t.Fatalf("%v\n%s", err, read(t, file))
	}
	got := make(map[string]string)
	for _, f := range config.Fields() {
		if value := f.Value(c); value != f.Default {
			got[f.Key] = value
		}
	}
	want := map[string]string{
		"strict": "true", "logging_format": "json", "stream_replicas": "3", "table": "shop.events",
		"database_dsn":  "postgres://outbox_relay@db.example.com/shop?sslmode=verify-full",
		"advisory_lock": "9007199254740991", "subject": "events.{topic}.{aggregate_type}.{aggregate_id}", "stream_max_bytes": "1125899906842624",
		"relay.retain": "1h", "relay.batch_size": "500", "relay.on_dead": "hold", "election.kind": "jetstream", "election.key": "shop/orders",
	}
	for key := range keys(want) {
		if got[key] != want[key] {
			t.Errorf("%s is %q, want %q", key, got[key], want[key])
		}
	}
	if len(got) != len(want) {
		t.Errorf("the settings are %v, want %v", got, want)
	}
	if table := value(only[*batchv1.Job](t, objects).Spec.Template.Spec.Containers[0], "OUTBOX_TABLE"); table != "shop.events" {
		t.Errorf("the migration makes the table %q", table)
	}
}

// A changed setting is a rolling update, another release's values are not.
func TestChecksum(t *testing.T) {
	sum := func(more string) string {
		objects, _, err := helm(t, leastValues+more)
		if err != nil {
			t.Fatal(err)
		}
		return only[*appsv1.Deployment](t, objects).Spec.Template.Annotations["checksum/config"]
	}
	if sum("") == "" || sum("") == sum("\nconfig: {stream_replicas: 1}") || sum("") != sum("\nreplicaCount: 3") {
		t.Errorf("checksums: %q, %q with another setting, %q with another value", sum(""), sum("\nconfig: {stream_replicas: 1}"), sum("\nreplicaCount: 3"))
	}
}

// The migration, and what lets it out, come before the relays; the doctor when it is asked for.
func TestHooks(t *testing.T) {
	objects, notes, err := helm(t, leastValues)
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]string)
	for _, o := range objects {
		if hook := o.GetAnnotations()["helm.sh/hook"]; hook != "" {
			got[kindOf(o).Kind] = hook
		}
	}
	if want := "pre-install,pre-upgrade"; len(got) != 3 || got["Job"] != want || got["NetworkPolicy"] != want || got["Pod"] != "test" {
		t.Errorf("the hooks are %v", got)
	}
	for _, want := range []string{"kubectl -n outbox exec deploy/shop-outbox-relay -- /outbox-relay migrate --print-grants", "helm -n outbox test shop --logs"} {
		if !strings.Contains(notes, want) {
			t.Errorf("the notes do not say %q:\n%s", want, notes)
		}
	}
	objects, notes, err = helm(t, strings.Replace(leastValues, "migration: {existingSecret: shop-owner}", "migration: {enabled: false}", 1))
	if err != nil {
		t.Fatal(err)
	}
	if jobs := all[*batchv1.Job](objects); len(jobs) != 0 || !strings.Contains(notes, "no migration Job") {
		t.Errorf("%d migrations, and the notes are\n%s", len(jobs), notes)
	}
	if migrate := value(only[*appsv1.Deployment](t, objects).Spec.Template.Spec.Containers[0], "OUTBOX_MIGRATE"); migrate != "" {
		t.Errorf("nobody makes the tables: OUTBOX_MIGRATE is %q", migrate)
	}
}
