package check

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
	"sigs.k8s.io/yaml"
)

// chartValues are the least that an installation says, and the most.
const (
	leastValues = `
database: {existingSecret: shop-postgres}
nats: {existingSecret: shop-nats}
migration: {existingSecret: shop-owner}
`
	mostValues = `
replicaCount: 3
image: {registry: registry.example.com, digest: "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", pullPolicy: Always}
imagePullSecrets: [{name: registry}]
fullnameOverride: shop-outbox
config:
  table: shop.events
  database_dsn: postgres://outbox_relay@db.example.com/shop?sslmode=verify-full
  advisory_lock: 9007199254740991
  subject: 'events.{topic}.{aggregate_type}.{aggregate_id}'
  stream_max_bytes: 1125899906842624
  relay: {retain: 1h, batch_size: 500, on_dead: hold}
  election: {kind: jetstream, key: shop/orders}
database: {existingSecret: shop-postgres, passwordKey: password}
nats: {existingSecret: shop-nats, credsKey: relay.creds, tlsSecret: shop-nats-tls}
migration: {existingSecret: shop-owner, passwordKey: password, dsn: "postgres://outbox_migrator@db.example.com/shop?sslmode=verify-full"}
serviceAccount: {name: shop, annotations: {example.com/role: outbox}}
podAnnotations: {example.com/team: shop}
podLabels: {team: shop}
resources: {requests: {cpu: 200m, memory: 1Gi}, limits: {memory: 1Gi}}
networkPolicy:
  postgres: [{ipBlock: {cidr: 10.1.2.3/32}}]
  postgresPort: 6432
  extraEgress: [{ports: [{port: 443}]}]
serviceMonitor: {enabled: true, labels: {release: prometheus}}
prometheusRule: {enabled: true, labels: {release: prometheus}}
priorityClassName: important
nodeSelector: {kubernetes.io/os: linux}
tolerations: [{key: dedicated, operator: Exists}]
affinity: {nodeAffinity: {preferredDuringSchedulingIgnoredDuringExecution: [{weight: 1, preference: {matchExpressions: [{key: disk, operator: In, values: [fast]}]}}]}}
topologySpreadConstraints: []
extraEnv: [{name: OUTBOX_LOGGING_LEVEL, value: debug}]
extraEnvFrom: [{configMapRef: {name: shop}}]
extraVolumes: [{name: extra, emptyDir: {}}]
extraVolumeMounts: [{name: extra, mountPath: /extra}]
`
)

// installation is all that is applied for one relay.
type installation struct {
	objects []object
	secrets []string // That are to be there.
}

// installations are the ways to install that the documents describe.
func installations(t *testing.T) map[string]installation {
	t.Helper()
	chart := func(values string) []object {
		objects, _, err := helm(t, values)
		if err != nil {
			t.Fatal(err)
		}
		return objects
	}
	migrate := kustomize(t, "migrate")
	return map[string]installation{
		"manifests": {
			slices.Concat(kustomize(t, "relay"), migrate),
			[]string{"outbox-relay-postgres", "outbox-relay-nats", "outbox-migrate-postgres"},
		},
		"manifests with all components": {
			slices.Concat(kustomize(t, "relay", "monitoring", "nats-tls", "openshift"), kustomize(t, "migrate", "openshift")),
			[]string{"outbox-relay-postgres", "outbox-relay-nats", "outbox-relay-nats-tls", "outbox-migrate-postgres"},
		},
		"chart": {chart(leastValues), []string{"shop-postgres", "shop-nats", "shop-owner"}},
		"chart with all values": {
			chart(mostValues),
			[]string{"shop-postgres", "shop-nats", "shop-nats-tls", "shop-owner"},
		},
		"chart without election": {
			chart(leastValues + "\nreplicaCount: 1\nconfig: {election: {kind: none}}\n"),
			[]string{"shop-postgres", "shop-nats", "shop-owner"},
		},
	}
}

// pod is a template of pods, or a pod.
type pod struct {
	owner     object
	meta      metav1.ObjectMeta
	spec      corev1.PodSpec
	component string
}

func pods(objects []object) (found []pod) {
	add := func(owner object, meta metav1.ObjectMeta, spec corev1.PodSpec) {
		found = append(found, pod{owner, meta, spec, meta.Labels["app.kubernetes.io/component"]})
	}
	for _, o := range objects {
		switch o := o.(type) {
		case *appsv1.Deployment:
			add(o, o.Spec.Template.ObjectMeta, o.Spec.Template.Spec)
		case *batchv1.Job:
			add(o, o.Spec.Template.ObjectMeta, o.Spec.Template.Spec)
		case *corev1.Pod:
			add(o, o.ObjectMeta, o.Spec)
		}
	}
	return found
}

// Each file by itself decodes strictly: kustomize would pass on what it does not know, but take one of two equal keys.
func TestFiles(t *testing.T) {
	var found []string
	for _, pattern := range []string{"*.yaml", "relay/*.yaml", "migrate/*.yaml", "monitoring/*.yaml"} {
		files, err := filepath.Glob(filepath.Join(manifests, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			if filepath.Base(file) == "kustomization.yaml" {
				continue
			}
			for _, o := range decode(t, file, []byte(read(t, file))) {
				found = append(found, kindOf(o).Kind)
			}
		}
	}
	slices.Sort(found)
	want := []string{"Deployment", "Job", "Namespace", "NetworkPolicy", "NetworkPolicy", "PodDisruptionBudget", "PrometheusRule", "Service", "ServiceMonitor"}
	if !slices.Equal(found, want) {
		t.Errorf("found %q, want %q", found, want)
	}
}

// What is strict about the decoder: a wrong name, a wrong case, a wrong type, a key twice.
func TestDecoderIsStrict(t *testing.T) {
	const good = "apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec: {clusterIP: None}\n"
	if _, _, err := decoder(t).Decode([]byte(good), nil, nil); err != nil {
		t.Fatal(err)
	}
	for _, wrong := range []string{
		strings.Replace(good, "clusterIP", "clusterAddress", 1),
		strings.Replace(good, "clusterIP", "clusterIp", 1),
		strings.Replace(good, "None", "[]", 1),
		good + "kind: Service\n",
		strings.Replace(good, "v1", "v2", 1),
	} {
		if _, _, err := decoder(t).Decode([]byte(wrong), nil, nil); err == nil {
			t.Errorf("decoded without an error:\n%s", wrong)
		}
	}
}

func TestObjects(t *testing.T) {
	for name, i := range installations(t) {
		t.Run(name, func(t *testing.T) {
			seen := make(map[string]bool)
			for _, o := range i.objects {
				id := kindOf(o).Kind + " " + o.GetName()
				if seen[id] {
					t.Errorf("%s is there twice", id)
				}
				seen[id] = true
				if problems := validation.IsDNS1123Label(o.GetName()); len(problems) > 0 {
					t.Errorf("%s: %q", id, problems)
				}
				if o.GetNamespace() != "outbox" {
					t.Errorf("%s is in the namespace %q", id, o.GetNamespace())
				}
				for key, value := range o.GetLabels() {
					if problems := append(validation.IsQualifiedName(key), validation.IsValidLabelValue(value)...); len(problems) > 0 {
						t.Errorf("%s: label %s=%s: %q", id, key, value, problems)
					}
				}
			}
			testReplicas(t, i.objects)
			for _, p := range pods(i.objects) {
				t.Run(p.component, func(t *testing.T) { testPod(t, p, i) })
			}
			testNetwork(t, i.objects)
			testScrapes(t, i.objects)
		})
	}
}

// Two relays that stand in for each other, or one that is alone.
func testReplicas(t *testing.T, objects []object) {
	t.Helper()
	d := only[*appsv1.Deployment](t, objects)
	if !maps.Equal(d.Spec.Selector.MatchLabels, subset(d.Spec.Template.Labels, d.Spec.Selector.MatchLabels)) {
		t.Errorf("the Deployment selects %v, its pods have %v", d.Spec.Selector.MatchLabels, d.Spec.Template.Labels)
	}
	budgets := all[*policyv1.PodDisruptionBudget](objects)
	if *d.Spec.Replicas == 1 {
		if d.Spec.Strategy.Type != appsv1.RecreateDeploymentStrategyType || len(budgets) != 0 {
			t.Errorf("one relay without an election: strategy %v, %d budgets", d.Spec.Strategy.Type, len(budgets))
		}
		return
	}
	if r := d.Spec.Strategy.RollingUpdate; *d.Spec.Replicas < 2 || r == nil || r.MaxUnavailable.IntValue() != 0 || r.MaxSurge.IntValue() != 1 || d.Spec.MinReadySeconds < 10 {
		t.Errorf("%d relays, rolling update %v, ready for %d s", *d.Spec.Replicas, r, d.Spec.MinReadySeconds)
	}
	if len(budgets) != 1 || budgets[0].Spec.MaxUnavailable.IntValue() != 1 || !selects(t, budgets[0].Spec.Selector, d.Spec.Template.Labels) {
		t.Errorf("the disruption budgets are %v", budgets)
	}
	for _, c := range d.Spec.Template.Spec.TopologySpreadConstraints {
		if !selects(t, c.LabelSelector, d.Spec.Template.Labels) {
			t.Errorf("the spread over %s is not about the relays", c.TopologyKey)
		}
	}
}

func subset(of, by map[string]string) map[string]string {
	found := make(map[string]string)
	for key := range by {
		if value, ok := of[key]; ok {
			found[key] = value
		}
	}
	return found
}

func selects(t *testing.T, selector *metav1.LabelSelector, set map[string]string) bool {
	t.Helper()
	s, err := metav1.LabelSelectorAsSelector(selector)
	if err != nil {
		t.Fatal(err)
	}
	return !s.Empty() && s.Matches(labels.Set(set))
}

func testPod(t *testing.T, p pod, i installation) {
	t.Helper()
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	verdict := policy.AggregateCheckResults(evaluator.EvaluatePod(api.LevelVersion{Level: api.LevelRestricted, Version: api.LatestVersion()}, &p.meta, &p.spec))
	if !verdict.Allowed {
		t.Errorf("restricted pod security: %s: %s", verdict.ForbiddenReason(), verdict.ForbiddenDetail())
	}
	if p.spec.AutomountServiceAccountToken == nil || *p.spec.AutomountServiceAccountToken {
		t.Error("it has a token for Kubernetes")
	}
	if p.spec.EnableServiceLinks == nil || *p.spec.EnableServiceLinks {
		t.Error("its environment names all services of the namespace")
	}
	if len(p.spec.Containers) != 1 || len(p.spec.InitContainers) != 0 {
		t.Fatalf("%d containers, want 1", len(p.spec.Containers))
	}
	c := p.spec.Containers[0]
	if s := c.SecurityContext; s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem {
		t.Error("it may write to its image")
	}
	if !regexp.MustCompile(`^[a-z0-9./-]+(:[0-9]+\.[0-9]+\.[0-9]+|@sha256:[0-9a-f]{64})$`).MatchString(c.Image) {
		t.Errorf("its image is %q, want one with a version or a digest", c.Image)
	}
	if !c.Resources.Limits.Cpu().IsZero() {
		t.Error("its processor is limited")
	}
	memory := c.Resources.Limits.Memory().Value()
	if memory == 0 || c.Resources.Requests.Memory().IsZero() || c.Resources.Requests.Cpu().IsZero() {
		t.Errorf("its resources are %v", c.Resources)
	}
	if limit := value(c, "GOMEMLIMIT"); p.component != "migrate" {
		n, err := strconv.ParseInt(strings.TrimSuffix(limit, "MiB"), 10, 64)
		if share := float64(n<<20) / float64(memory); err != nil || share < 0.88 || share > 0.9 {
			t.Errorf("GOMEMLIMIT is %s (%v), want 90 %% of %d", limit, err, memory)
		}
	}
	testVolumes(t, p, i)
	if p.component == "relay" {
		testProbes(t, p, c)
	}
}

func value(c corev1.Container, name string) string {
	for _, e := range c.Env {
		if e.Name == name {
			return e.Value
		}
	}
	return ""
}

// Secrets are files that others cannot read, from Secrets that the documents tell to make. Only the migration has the
// owner's.
func testVolumes(t *testing.T, p pod, i installation) {
	t.Helper()
	for _, v := range p.spec.Volumes {
		if !slices.ContainsFunc(p.spec.Containers[0].VolumeMounts, func(m corev1.VolumeMount) bool {
			return m.Name == v.Name && (m.ReadOnly || v.EmptyDir != nil)
		}) {
			t.Errorf("the volume %s is not mounted read-only", v.Name)
		}
		switch {
		case v.Secret != nil:
			owner := strings.Contains(v.Secret.SecretName, "owner") || strings.Contains(v.Secret.SecretName, "migrate")
			if !slices.Contains(i.secrets, v.Secret.SecretName) || owner != (p.component == "migrate") {
				t.Errorf("it has the Secret %s", v.Secret.SecretName)
			}
			if v.Secret.DefaultMode == nil || *v.Secret.DefaultMode != 0o440 || (v.Secret.Optional != nil && *v.Secret.Optional) {
				t.Errorf("the Secret %s is mounted as %+v, want mode 0440", v.Secret.SecretName, v.Secret)
			}
		case v.ConfigMap != nil:
			named[*corev1.ConfigMap](t, i.objects, v.ConfigMap.Name)
		}
	}
	for _, e := range p.spec.Containers[0].Env {
		if strings.Contains(e.Value, "password") && !strings.HasPrefix(e.Value, "/") || e.ValueFrom != nil {
			t.Errorf("%s is in the environment", e.Name)
		}
	}
	if fsGroup, user := p.spec.SecurityContext.FSGroup, p.spec.SecurityContext.RunAsUser; (fsGroup == nil) != (user == nil) {
		t.Errorf("user %v, group of the files %v: either both are chosen, or the cluster chooses", user, fsGroup)
	}
}

func testProbes(t *testing.T, p pod, c corev1.Container) {
	t.Helper()
	if c.StartupProbe == nil || c.LivenessProbe == nil || c.ReadinessProbe == nil {
		t.Fatal("a probe is missing")
	}
	for probe, want := range map[*corev1.Probe]string{c.StartupProbe: "/healthz", c.LivenessProbe: "/healthz", c.ReadinessProbe: "/readyz"} {
		if probe.HTTPGet.Path != want {
			t.Errorf("a probe asks %s, want %s", probe.HTTPGet.Path, want)
		}
		if port := portOf(t, c, probe); value(c, "OUTBOX_HTTP_ADDR") != fmt.Sprintf(":%d", port) {
			t.Errorf("a probe asks port %d, the relay serves %s", port, value(c, "OUTBOX_HTTP_ADDR"))
		}
		if probe.PeriodSeconds == 0 || probe.FailureThreshold == 0 || probe.TimeoutSeconds == 0 || probe.TimeoutSeconds > probe.PeriodSeconds+1 {
			t.Errorf("a probe is %+v", probe)
		}
	}
	if least := int64(20); *p.spec.TerminationGracePeriodSeconds < least {
		t.Errorf("%d s to end in, want at least %d: shutdown_timeout and a margin", *p.spec.TerminationGracePeriodSeconds, least)
	}
}

// portOf is the number of the port that a probe asks.
func portOf(t *testing.T, c corev1.Container, probe *corev1.Probe) int32 {
	t.Helper()
	for _, p := range c.Ports {
		if p.Name == probe.HTTPGet.Port.StrVal {
			return p.ContainerPort
		}
	}
	t.Fatalf("the container has no port %v", probe.HTTPGet.Port)
	return 0
}

// Each pod is under exactly one policy, which lets it to its servers.
func testNetwork(t *testing.T, objects []object) {
	t.Helper()
	policies := all[*networkingv1.NetworkPolicy](objects)
	for _, p := range pods(objects) {
		var applied []*networkingv1.NetworkPolicy
		for _, n := range policies {
			if selects(t, &n.Spec.PodSelector, p.meta.Labels) {
				applied = append(applied, n)
			}
		}
		if len(applied) != 1 || len(applied[0].Spec.PolicyTypes) != 2 {
			t.Errorf("%s: %d policies apply, want 1 of both directions", p.component, len(applied))
			continue
		}
		spec := applied[0].Spec
		var out []int32
		for _, rule := range spec.Egress {
			for _, port := range rule.Ports {
				out = append(out, port.Port.IntVal)
			}
			if slices.ContainsFunc(rule.Ports, func(p networkingv1.NetworkPolicyPort) bool { return p.Port.IntVal == 4222 || p.Port.IntVal == 5432 }) && len(rule.To) == 0 {
				t.Errorf("%s: may go anywhere: %v", p.component, rule)
			}
		}
		postgres := slices.Contains(out, 5432) || slices.Contains(out, 6432)
		if nats := slices.Contains(out, 4222); !slices.Contains(out, 53) || !postgres || nats == (p.component == "migrate") {
			t.Errorf("%s: may speak to the ports %v", p.component, out)
		}
		if p.component != "relay" {
			if len(spec.Ingress) != 0 {
				t.Errorf("%s: is spoken to: %v", p.component, spec.Ingress)
			}
			continue
		}
		if len(spec.Ingress) != 1 || len(spec.Ingress[0].From) != 1 || len(spec.Ingress[0].Ports) != 1 ||
			spec.Ingress[0].Ports[0].Port.StrVal != p.spec.Containers[0].Ports[0].Name {
			t.Errorf("the relay is spoken to: %v", spec.Ingress)
		}
	}
}

// Prometheus finds each relay through the Service.
func testScrapes(t *testing.T, objects []object) {
	t.Helper()
	service := only[*corev1.Service](t, objects)
	for _, p := range pods(objects) {
		if got, want := labels.SelectorFromSet(service.Spec.Selector).Matches(labels.Set(p.meta.Labels)), p.component == "relay"; got != want {
			t.Errorf("the Service selects %s: %v", p.component, got)
		}
	}
	relay := only[*appsv1.Deployment](t, objects).Spec.Template.Spec.Containers[0]
	if port := service.Spec.Ports[0]; service.Spec.ClusterIP != corev1.ClusterIPNone || !service.Spec.PublishNotReadyAddresses || port.TargetPort.StrVal != relay.Ports[0].Name {
		t.Errorf("the Service is %+v", service.Spec)
	}
	for _, m := range all[*monitoringv1.ServiceMonitor](objects) {
		if !selects(t, &m.Spec.Selector, service.Labels) || m.Spec.Endpoints[0].Port != service.Spec.Ports[0].Name || m.Spec.Endpoints[0].Path != "/metrics" {
			t.Errorf("the ServiceMonitor is %+v", m.Spec)
		}
	}
}

// Relay and migration are of one version, and the chart's.
func TestVersions(t *testing.T) {
	images := make(map[string][]string)
	for name, objects := range map[string][]object{"relay": kustomize(t, "relay"), "migrate": kustomize(t, "migrate"), "chart": installations(t)["chart"].objects} {
		for _, p := range pods(objects) {
			image := p.spec.Containers[0].Image
			images[image] = append(images[image], name)
		}
	}
	if len(images) != 1 {
		t.Errorf("the images are %v", images)
	}
}

// OpenShift chooses the user: no pod may.
func TestOpenShift(t *testing.T) {
	for _, p := range pods(slices.Concat(kustomize(t, "relay", "openshift"), kustomize(t, "migrate", "openshift"))) {
		if s := p.spec.SecurityContext; s.RunAsUser != nil || s.RunAsGroup != nil || s.FSGroup != nil {
			t.Errorf("%s: %+v", p.component, s)
		}
	}
}

// The GRANTs are those that the command prints, and the first of them is in roles.sql.
func TestGrants(t *testing.T) {
	command := exec.CommandContext(t.Context(), binary, "migrate", "--print-grants")
	command.Env, command.Dir = []string{}, t.TempDir()
	var errors bytes.Buffer
	command.Stderr = &errors
	printed, err := command.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, &errors)
	}
	same(t, filepath.Join(manifests, "grants.sql"), string(printed))
	roles := read(t, filepath.Join(manifests, "roles.sql"))
	for grant := range strings.Lines(string(printed)) {
		if migrator := strings.Contains(grant, `TO "outbox_migrator"`); strings.HasPrefix(grant, "GRANT") && migrator != strings.Contains(roles, grant) {
			t.Errorf("roles.sql has this grant: %v, want %v:\n%s", !migrator, migrator, grant)
		}
	}
}

// stream is what nats/stream.yaml may say: the fields of NACK's Stream, jetstream.nats.io/v1beta2, that matter here.
type stream struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`

	Spec struct {
		Name            string          `json:"name"`
		Subjects        []string        `json:"subjects"`
		Storage         string          `json:"storage"`
		Replicas        int             `json:"replicas"`
		Retention       string          `json:"retention"`
		Discard         string          `json:"discard"`
		DuplicateWindow metav1.Duration `json:"duplicateWindow"`
		AllowDirect     bool            `json:"allowDirect"`
		AllowBatched    bool            `json:"allowBatched"`
		PreventDelete   bool            `json:"preventDelete"`
	} `json:"spec"`
}

func readStream(t *testing.T) (s stream) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(manifests, "nats", "stream.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.UnmarshalStrict(text, &s); err != nil {
		t.Fatal(err)
	}
	return s
}
