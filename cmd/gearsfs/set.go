package main

import (
	"context"
	"fmt"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/cmd/internal/units"
	"github.com/gearsfs/gearsfs/dgm"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

type setOptions struct {
	node       string
	records    limitFlag
	bytes      units.Size
	age        units.Duration
	full       fullFlag
	tries      limitFlag
	typ        string
	idWindow   units.Duration
	appendOnly bool
	store      storeFlag
	format     formatFlag
}

func (a *app) setCommand() *cobra.Command {
	var o setOptions
	c := &cobra.Command{
		Use:   "set FILE KEY",
		Short: "Change a stream's settings, or print them",
		Long: `Change what is named and leave the other settings of a stream as they are. Without flags,
print them, one "name value" per line; 0 is no limit. What --age and --full drop-oldest
discard is counted: streams shows it. A stream in memory is gone when its node restarts; it
must be empty when it becomes one, and its volume have one node only.`,
		Example: `  gearsfs set gears/jobs data --records 1000 --bytes 64M
  gearsfs set gears/log data --age 7d --full drop-oldest --bytes 1G --append-only
  gearsfs set gears/jobs data`,
		Args: exactly(2),
		RunE: func(c *cobra.Command, args []string) error { return a.set(c.Context(), o, c.Flags(), args) },
	}
	f := c.Flags()
	nodeFlag(f, &o.node)
	f.Var(&o.records, "records", "hold at most this many records")
	f.Var(&o.bytes, "bytes", "hold at most this many bytes")
	f.Var(&o.age, "age", "discard records that nobody took for so long; 0 is never")
	f.Var(&o.full, "full", "what becomes of a put that finds the stream full: wait (until it is given up), refuse (status 3), or the oldest records go (drop-oldest)")
	f.Var(&o.tries, "tries", "after so many deliveries a record that comes back goes to the stream KEY.dead; 0 is never")
	f.StringVar(&o.typ, "type", "", "refuse records of another type than `NAME`; empty lets in all")
	f.Var(&o.idWindow, "id-window", "remember the ids of puts for so long (default 24h)")
	f.BoolVar(&o.appendOnly, "append-only", false, "refuse truncation, writes in place, clear, drop and update; --append-only=false allows them")
	f.Var(&o.store, "store", "keep the records on disk or in memory")
	f.VarP(&o.format, "output", "o", "print the settings as JSON")
	return c
}

// change returns what the flags that were given change.
func (o *setOptions) change(flags *pflag.FlagSet, now gearsfs.Limits) (change dgm.StreamChange, any bool) {
	for _, s := range []struct {
		name string
		set  func()
	}{
		{"records", func() { now.Records = o.records.value; change.Limits = &now }},
		{"bytes", func() { now.Bytes = o.bytes.Value; change.Limits = &now }},
		{"age", func() { change.Set.Age = &o.age.Value }},
		{"full", func() { change.Set.Full = &o.full.value }},
		{"tries", func() { tries := o.tries.count(); change.Set.Tries = &tries }},
		{"type", func() { change.Set.Type = &o.typ }},
		{"id-window", func() { change.Set.IDWindow = &o.idWindow.Value }},
		{"append-only", func() { change.Set.AppendOnly = &o.appendOnly }},
		{"store", func() { change.Set.Memory = &o.store.memory }},
	} {
		if flags.Changed(s.name) {
			s.set()
			any = true
		}
	}
	return change, any
}

func (a *app) set(ctx context.Context, o setOptions, flags *pflag.FlagSet, args []string) error {
	key, err := parseKey(args[1])
	if err != nil {
		return err
	}
	if len(o.typ) > gearsfs.KeyBytesMax {
		return usagef("--type has at most %d bytes", gearsfs.KeyBytesMax)
	}
	t, err := a.open(ctx, args[0], o.node)
	if err != nil {
		return err
	}
	info, err := t.Stream(ctx, t.file(), key)
	if err != nil {
		return fmt.Errorf("%s %s: %w", t.arg, key, cause(ctx, err))
	}
	if change, any := o.change(flags, info.Limits); any {
		return a.configure(ctx, o.node, args, change)
	}
	return a.printSettings(info, o.format.json)
}

// settingsJSON are a stream's settings as -o json shows them; spans are in
// seconds.
type settingsJSON struct {
	Records uint64  `json:"records"`
	Bytes   uint64  `json:"bytes"`
	Age     float64 `json:"age_seconds"`
	Full    string  `json:"full"`
	Tries   uint32  `json:"tries"`
	typeJSON
	IDWindow   float64 `json:"id_window_seconds"`
	AppendOnly bool    `json:"append_only"`
	Store      string  `json:"store"`
	Sealed     bool    `json:"sealed"`
}

func (a *app) printSettings(info gearsfs.StreamInfo, asJSON bool) error {
	s := &info.Settings
	if asJSON {
		return a.printJSON(settingsJSON{
			info.Limits.Records, info.Limits.Bytes, s.Age.Seconds(), s.Full.String(), s.Tries,
			typeToJSON(s.Type), s.Window().Seconds(), s.AppendOnly, s.Store(), info.Sealed,
		})
	}
	return a.pairs([]pair{
		{"records", info.Limits.Records}, {"bytes", info.Limits.Bytes}, {"age", spanText(s.Age)}, {"full", s.Full},
		{"tries", s.Tries}, {"type", a.shown(s.Type)}, {"id-window", spanText(s.Window())}, {"append-only", s.AppendOnly},
		{"store", s.Store()}, {"sealed", info.Sealed},
	})
}

// spanText is a span as the flags read it.
func spanText(d time.Duration) string {
	if d == 0 {
		return "0"
	}
	return d.String()
}

// fullFlag is what happens to a put into a full stream.
type fullFlag struct{ value gearsfs.Full }

var _ pflag.Value = (*fullFlag)(nil)

func (f *fullFlag) Type() string   { return "POLICY" }
func (f *fullFlag) String() string { return "" }

func (f *fullFlag) Set(s string) error {
	for i := gearsfs.FullWait; i <= gearsfs.FullDropOldest; i++ {
		if s == i.String() {
			f.value = i
			return nil
		}
	}
	return fmt.Errorf("%q is neither wait, refuse nor drop-oldest", s)
}

// storeFlag is where records are kept.
type storeFlag struct{ memory bool }

var _ pflag.Value = (*storeFlag)(nil)

func (f *storeFlag) Type() string   { return "PLACE" }
func (f *storeFlag) String() string { return "" }

func (f *storeFlag) Set(s string) error {
	if s != "disk" && s != "memory" {
		return fmt.Errorf("%q is neither disk nor memory", s)
	}
	f.memory = s == "memory"
	return nil
}
