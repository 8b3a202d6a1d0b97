package config

import (
	"fmt"
	"slices"
	"strings"
)

// suggestKey returns advice on a key of the file that does not exist.
func suggestKey(key string, fields []Field) string {
	candidates := make([]string, len(fields))
	for i, f := range fields {
		candidates[i] = f.Key
		// The right name in the wrong table. TOML invites it: whatever stands
		// below a header is in that header's table.
		if last(key) == last(f.Key) {
			table, _, inTable := strings.Cut(f.Key, ".")
			if inTable {
				return fmt.Sprintf("it belongs in the table [%s]", table)
			}
			return "it belongs at the top of the file, above the first table"
		}
	}
	if near, ok := nearest(key, candidates); ok {
		return didYouMean(near)
	}
	// The table may be wrong and the name misspelt.
	for i := range candidates {
		candidates[i] = last(candidates[i])
	}
	near, ok := nearest(last(key), candidates)
	if !ok {
		near, ok = abbreviated(last(key), candidates)
	}
	if ok {
		for _, f := range fields {
			if last(f.Key) == near {
				return didYouMean(f.Key)
			}
		}
	}
	return ""
}

// suggestEnv returns advice on a variable that does not exist.
func suggestEnv(name string, fields []Field) string {
	candidates := make([]string, 0, 2*len(fields))
	variable := make(map[string]string, 2*len(fields))
	for _, f := range fields {
		// OUTBOX_RELAY_BATCH_SIZE is what one guesses from the file's key.
		guess := envPrefix + strings.ToUpper(strings.ReplaceAll(f.Key, ".", "_"))
		candidates = append(candidates, f.Env, guess)
		variable[f.Env], variable[guess] = f.Env, f.Env
	}
	if near, ok := nearest(name, candidates); ok {
		return didYouMean(variable[near])
	}
	if near, ok := abbreviated(strings.TrimPrefix(name, envPrefix), withoutPrefix(candidates)); ok {
		return didYouMean(variable[envPrefix+near])
	}
	return ""
}

func withoutPrefix(variables []string) []string {
	names := make([]string, len(variables))
	for i, variable := range variables {
		names[i] = strings.TrimPrefix(variable, envPrefix)
	}
	return names
}

// abbreviated returns the shortest candidate whose words begin like those of name, or the other way round, though it
// may have more of them: LOGGING_LEVEL for LOG_LEVEL, DATABASE_DSN for DSN. It has to be the only one of that length.
func abbreviated(name string, candidates []string) (string, bool) {
	if len(name) > maxAbbreviation {
		return "", false // No name of ours is as long.
	}
	best, count := "", 0
	for _, candidate := range candidates {
		words := len(strings.Split(candidate, "_"))
		switch shortest := len(strings.Split(best, "_")); {
		case candidate == best || !abbreviates(name, candidate):
		case count == 0 || words < shortest:
			best, count = candidate, 1
		case words == shortest:
			count++
		}
	}
	return best, count == 1
}

const maxAbbreviation = 100

// abbreviates reports whether the candidate has, in their order, a word for each of name's.
func abbreviates(name, candidate string) bool {
	words := strings.Split(candidate, "_")
	for word := range strings.SplitSeq(name, "_") {
		i := slices.IndexFunc(words, func(w string) bool {
			return len(word) > 2 && (strings.HasPrefix(w, word) || len(w) > 2 && strings.HasPrefix(word, w))
		})
		if i < 0 {
			return false
		}
		words = words[i+1:]
	}
	return true
}

func didYouMean(name string) string { return fmt.Sprintf("did you mean %s?", name) }

// last returns what follows the last dot of a key.
func last(key string) string { return key[strings.LastIndexByte(key, '.')+1:] }

// nearest returns the candidate that takes the fewest edits to reach from
// name, if that is few enough to be a slip.
func nearest(name string, candidates []string) (string, bool) {
	best, edits := "", min(2, (len(name)+1)/3)+1
	for _, candidate := range candidates {
		if d := distance(name, candidate, edits); d < edits {
			best, edits = candidate, d
		}
	}
	return best, best != ""
}

// distance is the Levenshtein distance of a and b, or limit if that is less.
func distance(a, b string, limit int) int {
	if max(len(a)-len(b), len(b)-len(a)) >= limit {
		return limit // which also bounds the work on a key of a megabyte
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			substituted := diagonal
			if a[i] != b[j] {
				substituted++
			}
			diagonal = row[j+1]
			row[j+1] = min(substituted, row[j]+1, row[j+1]+1)
		}
	}
	return min(row[len(b)], limit)
}
