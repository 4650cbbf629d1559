package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/gearsfs/gearsfs"
	"github.com/spf13/cobra"
)

// nodeCommand makes a command that asks one node: that of --node, of the
// current directory's mount, or the default.
func (a *app) nodeCommand(use, short, long, example string, ask func(ctx context.Context, t target, asJSON bool) error) *cobra.Command {
	var at string
	var format formatFlag
	c := &cobra.Command{
		Use: use, Short: short, Long: long, Example: example,
		Args: exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			t, err := a.here(c.Context(), at)
			if err != nil {
				return err
			}
			return cause(c.Context(), ask(c.Context(), t, format.json))
		},
	}
	nodeFlag(c.Flags(), &at)
	c.Flags().VarP(&format, "output", "o", "write one JSON object per line")
	return c
}

// waitJSON is a waiting operation as -o json shows it.
type waitJSON struct {
	Session string `json:"session"`
	Client  string `json:"client"`
	Op      string `json:"op"`
	pathJSON
	Exists bool `json:"exists"`
	keysJSON
	Since  string `json:"since"`
	Passed uint32 `json:"passed"`
	nearJSON
}

// keysJSON is a list of keys within an object, all of them in base64 where one
// is not UTF-8.
type keysJSON struct {
	Keys       *[]gearsfs.Key `json:"keys,omitempty"`
	KeysBase64 [][]byte       `json:"keys_base64,omitempty"`
}

// nearJSON is as keysJSON.
type nearJSON struct {
	Near       *[]gearsfs.Key `json:"near,omitempty"`
	NearBase64 [][]byte       `json:"near_base64,omitempty"`
}

// textsOrBytes is textOrBytes of a list.
func textsOrBytes(keys []gearsfs.Key) (*[]gearsfs.Key, [][]byte) {
	all := append([]gearsfs.Key{}, keys...) // "[]", not "null"
	if utf8.ValidString(keyList(keys)) {
		return &all, nil
	}
	var raw [][]byte
	for _, k := range keys {
		raw = append(raw, []byte(k))
	}
	return nil, raw
}

func waitToJSON(w gearsfs.Wait) waitJSON {
	j := waitJSON{
		Session: w.Session.String(), Client: w.Client, Op: w.Op, pathJSON: pathToJSON(w.Path), Exists: w.Ino != 0,
		Since: timeText(w.Since), Passed: w.Passed,
	}
	j.Keys, j.KeysBase64 = textsOrBytes(w.Keys)
	j.Near, j.NearBase64 = textsOrBytes(w.Near)
	return j
}

func (a *app) waitsCommand() *cobra.Command {
	return a.nodeCommand("waits", "Show who waits for which key",
		`Show the takes, peeks, puts and locks of files that wait: who they are, for which keys of which
file and for how long, and which existing keys those may be misspellings of.`,
		"  gearsfs waits\n  gearsfs waits -o json",
		func(ctx context.Context, t target, asJSON bool) error {
			waits, err := t.Waits(ctx)
			if err != nil {
				return err
			}
			rows := [][]string{{"CLIENT", "OP", "FILE", "KEYS", "FOR", "PASSED", "NOTE"}}
			for _, w := range waits {
				if asJSON {
					if err := a.printJSON(waitToJSON(w)); err != nil {
						return err
					}
					continue
				}
				rows = append(rows, []string{
					a.shown(w.Client), w.Op, a.shown(w.Path), keyList(w.Keys), time.Since(w.Since).Truncate(time.Second).String(),
					number(uint64(w.Passed)), waitNote(w),
				})
			}
			if asJSON {
				return nil
			}
			return a.table(rows)
		})
}

func waitNote(w gearsfs.Wait) string {
	var notes []string
	if w.Ino == 0 {
		notes = append(notes, "no such file")
	}
	if len(w.Near) > 0 {
		notes = append(notes, "is "+keyList(w.Near)+" meant?")
	}
	return strings.Join(notes, "; ")
}

func keyList(keys []gearsfs.Key) string {
	words := make([]string, len(keys))
	for i, k := range keys {
		words[i] = string(k)
	}
	return strings.Join(words, ",")
}

func (a *app) remoteCommand() *cobra.Command {
	group := &cobra.Command{
		Use:   "remote",
		Short: "Name other nodes, so that NAME:/PATH works",
		Long: `Name other nodes. The node at ADDR keeps the names; wherever a command takes FILE,
NAME:/PATH is a path in the volume of that remote.`,
		Example: "  gearsfs remote add b host:4096\n  gearsfs put b:/jobs data 'convert a.png'",
		Args:    noSuchCommand,
		RunE:    func(*cobra.Command, []string) error { return usagef("remote add, rm or ls?") },
	}
	var at string
	add := &cobra.Command{
		Use: "add NAME ADDR", Short: "Name another node",
		Long:    "Name another node, or several addresses of one, separated by commas. A name that is there is replaced.",
		Example: "  gearsfs remote add b host:4096",
		Args:    exactly(2),
		RunE: func(c *cobra.Command, args []string) error {
			if args[1] == "" {
				return usagef("ADDR is empty")
			}
			return a.setRemote(c.Context(), at, args[0], args[1])
		},
	}
	remove := &cobra.Command{
		Use: "rm NAME", Short: "Forget a named node",
		Long:    "Forget a named node; what is under way with it goes on.",
		Example: "  gearsfs remote rm b",
		Args:    exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.setRemote(c.Context(), at, args[0], "")
		},
	}
	var format formatFlag
	list := &cobra.Command{
		Use: "ls", Short: "List the named nodes",
		Long:    "List the names that the node at ADDR knows, and their addresses.",
		Example: "  gearsfs remote ls\n  gearsfs remote ls -o json",
		Args:    exactly(0),
		RunE:    func(c *cobra.Command, _ []string) error { return a.remotes(c.Context(), at, format.json) },
	}
	list.Flags().VarP(&format, "output", "o", "write one JSON object per line")
	for _, c := range []*cobra.Command{add, remove, list} {
		nodeFlag(c.Flags(), &at)
	}
	group.AddCommand(add, remove, list)
	return group
}

func (a *app) setRemote(ctx context.Context, at, name, addrs string) error {
	if err := checkRemoteName(name); err != nil {
		return err
	}
	m, err := a.manager(ctx, a.addrs(at))
	if err != nil {
		return err
	}
	if addrs == "" {
		known, err := m.Remotes(ctx)
		if err != nil {
			return cause(ctx, err)
		}
		if _, ok := known[name]; !ok {
			return gearsfs.ErrNotFound.Because("there is no remote %q: gearsfs remote ls shows those that there are", name)
		}
	}
	err = m.SetRemote(ctx, name, addrs)
	if errors.Is(err, gearsfs.ErrInvalid) {
		return usagef("%v", err)
	}
	if err != nil {
		return fmt.Errorf("remote %s: %w", name, cause(ctx, err))
	}
	return nil
}

func (a *app) remotes(ctx context.Context, at string, asJSON bool) error {
	m, err := a.manager(ctx, a.addrs(at))
	if err != nil {
		return err
	}
	remotes, err := m.Remotes(ctx)
	if err != nil {
		return cause(ctx, err)
	}
	rows := [][]string{{"NAME", "ADDRESS"}}
	for _, name := range slices.Sorted(maps.Keys(remotes)) {
		if !asJSON {
			rows = append(rows, []string{name, remotes[name]})
			continue
		}
		err := a.printJSON(struct {
			Name    string `json:"name"`
			Address string `json:"address"`
		}{name, remotes[name]})
		if err != nil {
			return err
		}
	}
	if asJSON {
		return nil
	}
	return a.table(rows)
}
