// Package impostor proves that statements mean what they say whatever others have created on the search_path. A [Recorder]
// takes down the statements of a program; [Plant] reads from them which functions, operators and types they use, and puts
// impostors of all of these where a role would find them first. Then the program runs again, as that role: an impostor that
// is called raises an error.
package impostor

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
)

// Recorder takes down the statements of all connections that it is hooked into.
type Recorder struct {
	mu         sync.Mutex // Protects what follows.
	statements map[string]bool
}

// Hook is a store.Options.BeforeConnect.
func (r *Recorder) Hook(_ context.Context, config *pgx.ConnConfig) error {
	config.Tracer = r
	return nil
}

// Statements returns what was taken down, sorted.
func (r *Recorder) Statements() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var statements []string
	for s := range r.statements {
		statements = append(statements, s)
	}
	slices.Sort(statements)
	return statements
}

func (r *Recorder) add(statement string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.statements == nil {
		r.statements = make(map[string]bool)
	}
	r.statements[statement] = true
}

// TraceQueryStart implements [pgx.QueryTracer].
func (r *Recorder) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	r.add(data.SQL)
	return ctx
}

// TraceQueryEnd implements [pgx.QueryTracer].
func (r *Recorder) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// TraceBatchStart implements [pgx.BatchTracer].
func (r *Recorder) TraceBatchStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceBatchStartData) context.Context {
	for _, q := range data.Batch.QueuedQueries {
		r.add(q.SQL)
	}
	return ctx
}

// TraceBatchQuery implements [pgx.BatchTracer].
func (r *Recorder) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}

// TraceBatchEnd implements [pgx.BatchTracer].
func (r *Recorder) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData) {}

// Used is what statements use, by name.
type Used struct{ Words, Calls, Operators []string }

var (
	notCode  = regexp.MustCompile(`(?s)--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'|"(?:[^"]|"")*"|\$\d+`)
	call     = regexp.MustCompile(`([A-Za-z_][A-Za-z0-9_]*)\s*\(`)
	word     = regexp.MustCompile(`[A-Za-z_][A-Za-z0-9_]*`)
	operator = regexp.MustCompile(`[-+*/<>=~!@#%^&|?]+`)
)

// Of returns what statements use: all words, those that are followed by a parenthesis, and the operators.
func Of(statements []string) Used {
	words, calls, operators := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for _, s := range statements {
		s = strings.NewReplacer("::", " ", "$$", " ").Replace(notCode.ReplaceAllString(s, " ")) // The bodies of functions are code.
		for _, w := range word.FindAllString(s, -1) {
			words[strings.ToLower(w)] = true
		}
		for _, m := range call.FindAllStringSubmatch(s, -1) {
			calls[strings.ToLower(m[1])] = true
		}
		for _, o := range operator.FindAllString(s, -1) {
			if o == "!=" {
				o = "<>"
			}
			operators[o] = true
		}
	}
	list := func(set map[string]bool) []string {
		var names []string
		for name := range set {
			names = append(names, name)
		}
		slices.Sort(names)
		return names
	}
	return Used{list(words), list(calls), list(operators)}
}

// Schema is where the impostors live.
const Schema = "evil"

// types are those that the impostors' arguments have.
func types() []string {
	return []string{
		"int2", "int4", "int8", "numeric", "float8", "text", "varchar", "name", `"char"`, "bytea", "uuid", "jsonb", "json", "bool", "timestamptz",
		"timestamp", "interval", "xid", "oid", "regclass", "tid",
	}
}

// arrayTypes are those of arguments that may be any array.
func arrayTypes() []string {
	return []string{"text[]", "uuid[]", "int8[]", "int4[]", "bytea[]", "tid[]", "name[]"}
}

// Plant creates impostors of all that statements use, which none of them may call: with the same arguments as Postgres' own
// and, since a better match wins wherever it is, with all arguments of the same kind. It puts them first on the role's
// search_path, before Postgres' own. It is called with a superuser's connection and returns what it has planted, as
// "function name", "operator symbol" and "type name".
func Plant(tb testing.TB, admin *pgx.Conn, role string, statements []string) []string {
	tb.Helper()
	used := Of(statements)
	p := &planter{tb: tb, admin: admin, done: map[string]bool{}}
	p.sqlf(`create schema %s; grant usage on schema %[1]s to public`, Schema)
	var planted []string
	for _, name := range used.Calls {
		if p.function(name) {
			planted = append(planted, "function "+name)
		}
	}
	for i, left := range types() {
		for j, right := range types() {
			p.sqlf(`create function %s.operator_%d_%d(pg_catalog.%s, pg_catalog.%s) returns boolean language plpgsql as $f$begin raise exception 'an impostor of an operator was called, on %[4]s and %[5]s'; end$f$`,
				Schema, i, j, left, right)
		}
	}
	for _, symbol := range used.Operators {
		if p.operator(symbol) {
			planted = append(planted, "operator "+symbol)
		}
	}
	for _, name := range used.Words {
		if slices.Contains(types(), name) {
			p.sqlf(`create domain %s.%s as pg_catalog.%[2]s check (false)`, Schema, name)
			planted = append(planted, "type "+name)
		}
	}
	p.sqlf(`alter role %s set search_path = %s, pg_catalog, public`, pgx.Identifier{role}.Sanitize(), Schema)
	if _, err := admin.Exec(tb.Context(), p.script.String()); err != nil {
		tb.Fatalf("plant impostors: %v", err)
	}
	return planted
}

// planter writes the script that plants.
type planter struct {
	tb     testing.TB
	admin  *pgx.Conn
	script strings.Builder
	done   map[string]bool
}

func (p *planter) sqlf(format string, args ...any) {
	fmt.Fprintf(&p.script, format+";\n", args...)
}

// function plants all impostors of one name, unless Postgres has no such function.
func (p *planter) function(name string) bool {
	p.tb.Helper()
	rows, err := p.admin.Query(p.tb.Context(), `
select array(select pg_catalog.format_type(a, null) from unnest(p.proargtypes) with ordinality as x (a, n) order by n),
       array(select t.typcategory::text from unnest(p.proargtypes) with ordinality as x (a, n) join pg_catalog.pg_type t on t.oid = a order by n),
       case when r.typtype = 'p' then 'boolean' else pg_catalog.format_type(p.prorettype, null) end, p.proretset
  from pg_catalog.pg_proc p join pg_catalog.pg_type r on r.oid = p.prorettype
 where p.proname = $1 and p.pronamespace = 'pg_catalog'::regnamespace and p.pronargs <= 5`, name)
	if err != nil {
		p.tb.Fatal(err)
	}
	type signature struct {
		args, categories []string
		result           string
		set              bool
	}
	signatures, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (s signature, err error) {
		err = row.Scan(&s.args, &s.categories, &s.result, &s.set)
		return s, err
	})
	if err != nil {
		p.tb.Fatal(err)
	}
	for _, s := range signatures {
		if s.set {
			s.result = "setof " + s.result
		}
		options := make([][]string, len(s.args))
		for i := range s.args {
			options[i] = p.sameKind(s.args[i], s.categories[i])
		}
		for _, args := range combinations(options) {
			arguments := strings.Join(args, ", ")
			if key := name + "(" + arguments + ")"; !p.done[key] && key != "count()" { // Which is count(*), below.
				p.done[key] = true
				p.sqlf(`create function %s.%s(%s) returns %s language plpgsql as $f$begin raise exception 'an impostor was called: %[2]s(%[3]s)'; end$f$`,
					Schema, pgx.Identifier{name}.Sanitize(), arguments, s.result)
			}
		}
	}
	if name == "count" {
		p.sqlf(`create function %s.counted(bigint) returns bigint language plpgsql as $f$begin raise exception 'an impostor was called: count(*)'; end$f$`, Schema)
		p.sqlf(`create aggregate %s.count(*) (sfunc = %[1]s.counted, stype = bigint, initcond = '0')`, Schema)
	}
	return len(signatures) > 0
}

// sameKind returns the types of an argument's kind, itself among them. A pseudo-type may be anything.
func (p *planter) sameKind(arg, category string) []string {
	p.tb.Helper()
	rows, err := p.admin.Query(p.tb.Context(), `
select pg_catalog.format_type(t.oid, null) from unnest($1::text[]) as x (name) join pg_catalog.pg_type t on t.oid = ('pg_catalog.' || name)::regtype
 where case when $2 = 'P' then true when $2 in ('N', 'S') then t.typcategory in ('N', 'S') else t.typcategory::text = $2 end`,
		append(types(), arrayTypes()...), category)
	if err != nil {
		p.tb.Fatal(err)
	}
	kinds, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		p.tb.Fatal(err)
	}
	if category != "P" && !slices.Contains(kinds, arg) {
		kinds = append(kinds, arg)
	}
	return kinds
}

// combinations returns all of up to two arguments; of more, those that differ from the first in one.
func combinations(options [][]string) [][]string {
	switch len(options) {
	case 0:
		return [][]string{{}}
	case 1, 2:
		var all [][]string
		for _, first := range options[0] {
			if len(options) == 1 {
				all = append(all, []string{first})
				continue
			}
			for _, second := range options[1] {
				all = append(all, []string{first, second})
			}
		}
		return all
	}
	base := make([]string, len(options))
	for i := range options {
		base[i] = options[i][len(options[i])-1]
	}
	all := [][]string{base}
	for i := range options {
		for _, option := range options[i] {
			varied := slices.Clone(base)
			varied[i] = option
			all = append(all, varied)
		}
	}
	return all
}

// operator plants an operator for all types, unless Postgres has no such operator.
func (p *planter) operator(symbol string) bool {
	p.tb.Helper()
	var exists bool
	if err := p.admin.QueryRow(p.tb.Context(), `select exists (select from pg_catalog.pg_operator where oprname = $1)`, symbol).Scan(&exists); err != nil {
		p.tb.Fatal(err)
	}
	if !exists {
		return false
	}
	for i, left := range types() {
		for j, right := range types() {
			p.sqlf(`create operator %s.%s (leftarg = pg_catalog.%s, rightarg = pg_catalog.%s, function = %[1]s.operator_%[5]d_%[6]d)`, Schema, symbol, left, right, i, j)
		}
	}
	return true
}
