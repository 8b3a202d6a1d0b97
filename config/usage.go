package config

import (
	"fmt"
	"strings"
)

// Usage describes every setting for a terminal.
func Usage() string {
	fields := Fields()
	var width, envWidth int
	for _, f := range fields {
		width = max(width, len(f.Key))
		envWidth = max(envWidth, len(f.Env))
	}
	var b strings.Builder
	fmt.Fprintf(&b, "Settings are read from the file %s names (default %s), then from the\n", PathEnv, DefaultPath)
	b.WriteString("environment, which wins. Each is given as file key, variable and default.\n")
	for _, f := range fields {
		fmt.Fprintf(&b, "\n  %-*s  %-*s  %s\n", width, f.Key, envWidth, f.Env, f.defaultText())
		fmt.Fprintf(&b, "      %s\n", f.Doc)
		fmt.Fprintf(&b, "      Accepts %s.\n", f.Want)
	}
	return b.String()
}

func (f Field) defaultText() string {
	switch {
	case f.Required:
		return "required"
	case f.Default == "":
		return "none"
	default:
		return f.Default
	}
}
