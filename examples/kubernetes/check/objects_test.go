package check

import (
	"bufio"
	"bytes"
	"errors"
	"flag"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

// update writes the files that are copies of others, instead of comparing them.
var update = flag.Bool("update", false, "write what is generated") //nolint:gochecknoglobals // A flag of the test binary.

// Where things are, as seen from this package.
const (
	root      = "../../.."
	manifests = ".."
	chartDir  = "../chart"
	alerts    = "../../observability/alerts.yml"
	runbook   = "../../observability/RUNBOOK.md"

	observability = "../../observability"
)

// object is what every object of Kubernetes is.
type object interface {
	runtime.Object
	metav1.Object
}

// decoder refuses fields that a type does not have, in the right case, and fields that are given twice, as the API server
// does with --validate=strict.
func decoder(t *testing.T) runtime.Decoder {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		appsv1.AddToScheme, batchv1.AddToScheme, corev1.AddToScheme, networkingv1.AddToScheme, policyv1.AddToScheme, monitoringv1.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	return json.NewSerializerWithOptions(json.DefaultMetaFactory, scheme, scheme, json.SerializerOptions{Yaml: true, Strict: true})
}

// decode returns the objects of a text in YAML. Where names the text in errors.
func decode(t *testing.T, where string, text []byte) (objects []object) {
	t.Helper()
	decoder := decoder(t)
	reader := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text)))
	for {
		document, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return objects
		}
		if err != nil {
			t.Fatalf("%s: %v", where, err)
		}
		var content any
		if err := yaml.Unmarshal(document, &content); err != nil {
			t.Fatalf("%s: %v", where, err)
		}
		if content == nil {
			continue // Comments only.
		}
		decoded, kind, err := decoder.Decode(document, nil, nil)
		if err != nil {
			t.Fatalf("%s: %v\n%s", where, err, document)
		}
		o, ok := decoded.(object)
		if !ok || o.GetName() == "" {
			t.Fatalf("%s: a %v without a name", where, kind)
		}
		objects = append(objects, o)
	}
}

// kindOf is the kind in the object itself.
func kindOf(o object) schema.GroupVersionKind { return o.GetObjectKind().GroupVersionKind() }

// all returns the objects of one type.
func all[T object](objects []object) (found []T) {
	for _, o := range objects {
		if typed, ok := o.(T); ok {
			found = append(found, typed)
		}
	}
	return found
}

// only returns the one object of a type.
func only[T object](t *testing.T, objects []object) T {
	t.Helper()
	found := all[T](objects)
	if len(found) != 1 {
		t.Fatalf("%d objects of type %T, want 1", len(found), *new(T))
	}
	return found[0]
}

// named returns the object of a type and a name.
func named[T object](t *testing.T, objects []object, name string) T {
	t.Helper()
	found := all[T](objects)
	i := slices.IndexFunc(found, func(o T) bool { return o.GetName() == name })
	if i < 0 {
		t.Fatalf("no %T %q", *new(T), name)
	}
	return found[i]
}

// kustomize returns what kubectl apply -k would apply for one of our folders, with components of ours named in its
// kustomization.yaml, as README.md says.
func kustomize(t *testing.T, folder string, components ...string) []object {
	t.Helper()
	dir := t.TempDir()
	for _, name := range append([]string{folder}, components...) {
		if err := os.CopyFS(filepath.Join(dir, name), os.DirFS(filepath.Join(manifests, name))); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(dir, folder, "kustomization.yaml")
	text := read(t, file)
	for i, c := range components {
		if i == 0 {
			text += "\ncomponents:\n"
		}
		text += "  - ../" + c + "\n"
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	built, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), filepath.Dir(file))
	if err != nil {
		t.Fatalf("kustomize %s %q: %v", folder, components, err)
	}
	result, err := built.AsYaml()
	if err != nil {
		t.Fatal(err)
	}
	return decode(t, "kustomize "+folder, result)
}

// helm returns what helm template prints for values in YAML, and the notes.
func helm(t *testing.T, values string) (objects []object, notes string, err error) {
	t.Helper()
	rendered, err := renderChart(t, values)
	if err != nil {
		return nil, "", err
	}
	for _, name := range slices.Sorted(keys(rendered)) {
		text := rendered[name]
		switch {
		case strings.HasSuffix(name, "NOTES.txt"):
			notes = text
		case !strings.HasSuffix(name, ".tpl"):
			objects = append(objects, decode(t, name, []byte(text))...)
		}
	}
	for _, o := range objects {
		if o.GetNamespace() == "" {
			o.SetNamespace("outbox") // As helm install does.
		}
	}
	return objects, notes, nil
}

func renderChart(t *testing.T, values string) (map[string]string, error) {
	t.Helper()
	c := loadChart(t)
	overrides := map[string]any{}
	if err := yaml.UnmarshalStrict([]byte(values), &overrides); err != nil {
		t.Fatal(err)
	}
	merged, err := util.ToRenderValues(c, overrides, common.ReleaseOptions{Name: "shop", Namespace: "outbox", IsInstall: true, Revision: 1}, nil)
	if err != nil {
		return nil, err
	}
	return engine.Render(c, merged)
}

func loadChart(t *testing.T) *chart.Chart {
	t.Helper()
	c, err := loader.Load(chartDir)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func keys[K comparable, V any](m map[K]V) func(yield func(K) bool) {
	return func(yield func(K) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// same compares a file with what it is to be, or writes it with -update.
func same(t *testing.T, name, want string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(name, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	got, err := os.ReadFile(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("%s is not as it is to be: run go test -run %s -update\ngot:\n%s\nwant:\n%s", name, t.Name(), got, want)
	}
}
