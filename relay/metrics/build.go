package metrics

import (
	"cmp"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/prometheus/client_golang/prometheus"
)

// module is this module's path, by which a program's build information names it.
const module = "github.com/go-outbox/go-outbox"

// Build registers a metric whose labels say what runs. Version is that of Go Outbox; if it is empty, what the go command knows of
// it counts. Build fails if the registerer has a metric of this name already.
func Build(registerer prometheus.Registerer, version string) error {
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        prefix + "build_info",
		Help:        "1, with the version of Go Outbox and that of Go.",
		ConstLabels: prometheus.Labels{"version": cmp.Or(version, moduleVersion(), "unknown"), "goversion": runtime.Version()},
	})
	info.Set(1)
	if err := registerer.Register(info); err != nil {
		return fmt.Errorf("register the metric of the build: %w", err)
	}
	return nil
}

// moduleVersion is the version of this module in the running program; empty if that is not known.
func moduleVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	if info.Main.Path == module {
		return info.Main.Version
	}
	for _, dependency := range info.Deps {
		if dependency.Path == module {
			return dependency.Version
		}
	}
	return ""
}
