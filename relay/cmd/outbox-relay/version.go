package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is the release, stamped with -ldflags '-X main.version=v1.2.3'.
var version = "dev"

// currentVersion falls back to what the go command knows: go install module@version stamps nothing.
func currentVersion() string {
	if version != "dev" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return version
}

func versionLine() string {
	return fmt.Sprintf("outbox-relay %s (%s, %s/%s)", currentVersion(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

func newVersionCommand(p *process) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  usage(noArgs),
		RunE: func(*cobra.Command, []string) error {
			return printf(p.stdout, "%s\n", versionLine())
		},
	}
}
