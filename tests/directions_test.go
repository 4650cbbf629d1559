package tests

import (
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const module = "github.com/gearsfs/gearsfs"

// A room says what one package may name: rooms of the house, and what is from
// outside the house and the standard library.
type room struct {
	rooms   []string
	outside []string
}

// nouns is the package at the root.
const nouns = module

// The house (docs/architecture.md). A package that is not in here fails.
var house = map[string]room{
	nouns:       {},
	"stream":    {rooms: []string{nouns}},
	"transport": {rooms: []string{nouns}, outside: []string{"golang.org/x/sys"}},
	"wire": {outside: []string{
		"google.golang.org/protobuf", "github.com/planetscale/vtprotobuf",
	}},
	"persist": {rooms: []string{nouns, "wire"}, outside: []string{
		"github.com/cockroachdb/pebble/v2", "golang.org/x/sys",
	}},
	"block":           {rooms: []string{nouns}, outside: []string{"golang.org/x/sys"}},
	"block/blocktest": {rooms: []string{"block"}, outside: []string{"golang.org/x/sys", "github.com/stretchr/testify"}},
	"file":            {rooms: []string{nouns, "stream", "persist", "wire"}, outside: []string{"github.com/emirpasic/gods/v2"}},
	"replica":         {rooms: []string{nouns, "wire", "persist"}, outside: []string{"go.etcd.io/raft/v3", "google.golang.org/protobuf"}},
	"dgm": {rooms: []string{
		nouns, "stream", "transport", "wire", "persist", "block", "file", "replica",
		"dgm/internal/answer", "dgm/internal/memory", "dgm/internal/mesh", "dgm/internal/payload",
	}},
	"dgm/internal/answer": {rooms: []string{nouns, "wire"}},
	"dgm/internal/memory": {rooms: []string{nouns, "stream", "wire", "file", "dgm/internal/answer"}},
	"dgm/internal/mesh": {rooms: []string{
		nouns, "transport", "wire", "persist", "file", "replica", "dgm/internal/answer",
	}},
	"dgm/internal/payload": {rooms: []string{nouns, "transport", "wire", "persist", "block", "file"}},
	"dgm/dgmtest":          {rooms: []string{nouns, "dgm"}, outside: []string{"github.com/stretchr/testify"}},
	"mount":                {rooms: []string{nouns, "dgm", "mount/journal"}, outside: []string{"github.com/hanwen/go-fuse/v2", "golang.org/x/sys"}},
	"mount/journal":        {outside: []string{"golang.org/x/sys"}},
	"wordcount":            {rooms: []string{nouns, "dgm"}},
	"cmd/internal/node": { // wires it all
		rooms:   []string{nouns, "transport", "persist", "dgm", "mount"},
		outside: []string{"golang.org/x/sys"},
	},
	"cmd/internal/metrics": {rooms: []string{"transport", "dgm"}, outside: []string{"github.com/prometheus/client_golang"}},
	"cmd/internal/units":   {outside: []string{"github.com/spf13/pflag"}},
	"cmd/gearsfs": {
		rooms:   []string{nouns, "dgm", "mount", "wordcount", "cmd/internal/node", "cmd/internal/units"},
		outside: []string{"github.com/spf13/cobra", "github.com/spf13/pflag", "golang.org/x/sys"},
	},
	"cmd/gearsfsd": {
		rooms:   []string{nouns, "mount", "cmd/internal/metrics", "cmd/internal/node", "cmd/internal/units"},
		outside: []string{"github.com/spf13/pflag"},
	},
	"bench": { // measures a node beside what it stands on
		rooms: []string{nouns, "dgm", "bench/load"}, outside: []string{"github.com/cockroachdb/pebble/v2"},
	},
	"bench/load":   {},
	"tests":        {},
	"tests/bubble": {},
}

func TestDirections(t *testing.T) {
	out := command{dir: ".."}.must(t, "go", "list", "-json=ImportPath,Imports,Standard", "./...")
	for decode := json.NewDecoder(strings.NewReader(out)); ; {
		var p struct {
			ImportPath string
			Imports    []string
		}
		err := decode.Decode(&p)
		if errors.Is(err, io.EOF) {
			return
		}
		require.NoError(t, err)
		name := strings.TrimPrefix(p.ImportPath, module+"/")
		may, known := house[name]
		if !known {
			t.Errorf("%s has no place in the house", name)
		}
		for _, i := range p.Imports {
			below, ok := strings.CutPrefix(i, module+"/")
			if i == module {
				below, ok = nouns, true
			}
			if ok {
				if !slices.Contains(may.rooms, below) {
					t.Errorf("%s names %s", name, below)
				}
			} else if first, _, _ := strings.Cut(i, "/"); strings.Contains(first, ".") {
				if !slices.ContainsFunc(may.outside, func(o string) bool { return i == o || strings.HasPrefix(i, o+"/") }) {
					t.Errorf("%s names %s", name, i)
				}
			}
		}
	}
}

// The table itself must not allow what the house forbids.
func TestTheHouseHasOneDirection(t *testing.T) {
	seen := map[string]bool{}
	var visit func(name string, path []string)
	visit = func(name string, path []string) {
		require.NotContains(t, path, name, "a circle")
		seen[name] = true
		for _, below := range house[name].rooms {
			require.Contains(t, house, below)
			visit(below, append(slices.Clone(path), name))
		}
	}
	for name := range house {
		visit(name, nil)
	}
	only := map[string][]string{
		"github.com/cockroachdb/pebble/v2": {"persist", "bench"},
		"go.etcd.io/raft/v3":               {"replica"},
		"github.com/hanwen/go-fuse/v2":     {"mount"},
	}
	for name, r := range house {
		for _, o := range r.outside {
			if at, ok := only[o]; ok {
				require.Contains(t, at, name, "%s is not for %s", o, name)
			}
		}
	}
}
