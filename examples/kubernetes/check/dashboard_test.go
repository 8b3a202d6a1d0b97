package check

import (
	"encoding/json"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// query is where a dashboard has PromQL, at any depth.
type query struct {
	Expr   string  `json:"expr"`
	Legend string  `json:"legendFormat"`
	Panels []panel `json:"panels"`
}

type panel struct {
	ID      int     `json:"id"`
	Type    string  `json:"type"`
	Title   string  `json:"title"`
	Targets []query `json:"targets"`
	Grid    struct {
		H, W, X, Y int
	} `json:"gridPos"`
}

// Each query of the dashboard is PromQL about metrics that exist, and no panel covers another.
func TestDashboard(t *testing.T) {
	var dashboard struct {
		Title       string  `json:"title"`
		Panels      []panel `json:"panels"`
		Annotations struct {
			List []query `json:"list"`
		} `json:"annotations"`
		Templating struct {
			List []struct{ Name string } `json:"list"`
		} `json:"templating"`
	}
	text := read(t, filepath.Join(observability, "grafana", "dashboards", "outbox.json"))
	if err := json.Unmarshal([]byte(text), &dashboard); err != nil {
		t.Fatal(err)
	}
	known := knownMetrics(t)
	variables := []string{"__rate_interval"}
	for _, v := range dashboard.Templating.List {
		variables = append(variables, v.Name)
	}
	shown := make(map[string]bool)
	examine := func(where string, q query) {
		for _, v := range regexp.MustCompile(`\$\{?(\w+)`).FindAllStringSubmatch(q.Expr, -1) {
			if !slices.Contains(variables, v[1]) {
				t.Errorf("%s: there is no variable %s", where, v[0])
			}
		}
		for _, name := range metricsOf(t, strings.ReplaceAll(q.Expr, "$__rate_interval", "1m")) {
			shown[strings.TrimSuffix(name, "_bucket")] = true
			if strings.HasPrefix(name, "outbox_") && !known[strings.TrimSuffix(name, "_bucket")] {
				t.Errorf("%s: there is no metric %s", where, name)
			}
		}
	}
	ids := make(map[int]bool)
	for i, p := range dashboard.Panels {
		if ids[p.ID] || p.Title == "" || p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("panel %d, %q, has no id of its own, no title or no query", p.ID, p.Title)
		}
		ids[p.ID] = true
		for _, q := range p.Targets {
			examine(p.Title, q)
		}
		for _, other := range dashboard.Panels[:i] {
			if p.Grid.X < other.Grid.X+other.Grid.W && other.Grid.X < p.Grid.X+p.Grid.W && p.Grid.Y < other.Grid.Y+other.Grid.H && other.Grid.Y < p.Grid.Y+p.Grid.H {
				t.Errorf("the panels %q and %q overlap", other.Title, p.Title)
			}
		}
		if p.Grid.X+p.Grid.W > 24 {
			t.Errorf("the panel %q is too far to the right", p.Title)
		}
	}
	for _, q := range dashboard.Annotations.List {
		examine("an annotation", q)
	}
	// Whatever is worth a metric is worth a look, but for what others show better.
	for name := range known {
		if elsewhere := []string{"outbox_relay_term", "outbox_relay_tables_up", "outbox_relay_last_published_timestamp_seconds", "outbox_relay_archive_events"}; !shown[name] && !slices.Contains(elsewhere, name) {
			t.Errorf("the dashboard does not show %s", name)
		}
	}
}

// What docker-compose.yml mounts is there, and Prometheus and Grafana find what they are told of.
func TestComposeObservability(t *testing.T) {
	var compose struct {
		Services map[string]struct {
			Profiles []string
			Image    string
			Volumes  []string
			Env      map[string]string `json:"environment"`
		}
	}
	decode := func(path string, into any) {
		t.Helper()
		if err := yaml.Unmarshal([]byte(read(t, path)), into); err != nil {
			t.Fatal(err)
		}
	}
	decode(filepath.Join(root, "docker-compose.yml"), &compose)
	mounted := make(map[string]string) // By the path in the container.
	for _, name := range []string{"prometheus", "grafana"} {
		s := compose.Services[name]
		if !slices.Equal(s.Profiles, []string{"observability"}) || !regexp.MustCompile(`:v?[0-9]+\.[0-9]+`).MatchString(s.Image) {
			t.Errorf("%s: profiles %v, image %q: want the profile observability, and a version", name, s.Profiles, s.Image)
		}
		for _, v := range s.Volumes {
			host, inside, _ := strings.Cut(strings.TrimSuffix(v, ":ro"), ":")
			mounted[inside] = filepath.Join(root, host)
		}
	}
	var prometheus struct {
		RuleFiles []string `json:"rule_files"`
		Scrape    []struct {
			Static []struct{ Targets []string } `json:"static_configs"`
			DNS    []struct{ Names []string }   `json:"dns_sd_configs"`
		} `json:"scrape_configs"`
	}
	decode(mounted["/etc/prometheus/prometheus.yml"], &prometheus)
	for _, file := range prometheus.RuleFiles {
		read(t, mounted["/etc/prometheus/"+file])
	}
	for _, job := range prometheus.Scrape {
		var hosts []string
		for _, s := range job.Static {
			hosts = append(hosts, s.Targets...)
		}
		for _, d := range job.DNS {
			hosts = append(hosts, d.Names...)
		}
		for _, host := range hosts {
			service, _, _ := strings.Cut(host, ":")
			if _, ok := compose.Services[service]; !ok {
				t.Errorf("Prometheus scrapes %s, which is no service", host)
			}
		}
	}
	home := compose.Services["grafana"].Env["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
	read(t, filepath.Join(mounted[filepath.Dir(home)], filepath.Base(home)))
	var provider struct {
		Providers []struct{ Options struct{ Path string } }
	}
	decode(filepath.Join(mounted["/etc/grafana/provisioning"], "dashboards", "outbox.yml"), &provider)
	if len(provider.Providers) != 1 || mounted[provider.Providers[0].Options.Path] == "" {
		t.Errorf("Grafana looks for dashboards at %+v, where nothing is mounted", provider.Providers)
	}
}
