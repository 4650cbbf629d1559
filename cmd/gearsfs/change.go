package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

type updateOptions struct {
	node   string
	typ    string
	ifSeq  seqFlag
	format formatFlag
}

func (a *app) updateCommand() *cobra.Command {
	var o updateOptions
	c := &cobra.Command{
		Use:   "update FILE KEY RECORD | -",
		Short: "Replace all of a stream by one record",
		Long: `Make a record the only one of its stream, in one step: nobody sees the stream empty in
between, and peek --after waits for the next. Leases on what was there end. With --if-seq it
is done only while the newest record that was put is that one (0: none was yet), so that two
who change what they have read don't undo each other's work.`,
		Example: `  gearsfs update gears/config main 'colour = green'
  seq=$(gearsfs peek gears/config main -o json | jq .seq)
  gearsfs update gears/config main "$new" --if-seq "$seq" || echo "status 3: it has changed meanwhile"`,
		Args: exactly(3),
		RunE: func(c *cobra.Command, args []string) error { return a.update(c.Context(), o, args) },
	}
	f := c.Flags()
	nodeFlag(f, &o.node)
	f.StringVar(&o.typ, "type", "", "a `NAME` for what the record is")
	f.Var(&o.ifSeq, "if-seq", "only where the newest record is this one (status 3 where not)")
	f.VarP(&o.format, "output", "o", "print the record's seq as JSON")
	return c
}

func (a *app) update(ctx context.Context, o updateOptions, args []string) error {
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
	data := []byte(args[2])
	if args[2] == "-" {
		if data, err = readWhole(ctx, a.in); err != nil {
			return err
		}
	}
	result, err := t.Update(ctx, dgm.Update{
		File: t.file(), Key: key, Record: gearsfs.NewRecord{Data: data, Type: o.typ}, Mode: 0o666 &^ a.umask, IfSeq: o.ifSeq.value,
	})
	switch {
	case errors.Is(err, gearsfs.ErrUnmet):
		return fmt.Errorf("%s %s: %w", t.arg, key, gearsfs.ErrUnmet.Because("record %d is not the newest any more", *o.ifSeq.value))
	case err != nil:
		return fmt.Errorf("%s %s: %w", t.arg, key, cause(ctx, err))
	case !o.format.json:
		return nil
	}
	return a.printJSON(struct {
		Seq gearsfs.Seq `json:"seq"`
	}{result.Last})
}

// seqFlag is a flag whose value is a seq; 0 is none.
type seqFlag struct{ value *gearsfs.Seq }

func (f *seqFlag) Type() string   { return "SEQ" }
func (f *seqFlag) String() string { return "" }

func (f *seqFlag) Set(s string) error {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return fmt.Errorf("%q is not a seq", s)
	}
	seq := gearsfs.Seq(n)
	f.value = &seq
	return nil
}

func (a *app) moveCommand() *cobra.Command {
	var at string
	var count countFlag
	var format formatFlag
	c := &cobra.Command{
		Use:   "move FILE KEY KEY",
		Short: "Move records from one stream of a file to another",
		Long: `Move the records of the first stream that can be taken to the end of the second, in their
order: all that are there now, or the first -n of them. Each is in one of the two at any
time. Where there are none, or fewer than -n, the status is 3.`,
		Example: `  gearsfs move gears/jobs data.dead data      # try again what failed too often
  gearsfs move gears/jobs normal urgent -n 1 -o json`,
		Args: exactly(3),
		RunE: func(c *cobra.Command, args []string) error {
			return a.moveRecords(c.Context(), at, args, count, format.json)
		},
	}
	nodeFlag(c.Flags(), &at)
	c.Flags().VarP(&count, "count", "n", "move this many, or all that are there now (default all)")
	c.Flags().VarP(&format, "output", "o", "print how many were moved as JSON")
	return c
}

func (a *app) moveRecords(ctx context.Context, at string, args []string, count countFlag, asJSON bool) error {
	from, err := parseKey(args[1])
	if err != nil {
		return err
	}
	to, err := parseKey(args[2])
	if err != nil {
		return err
	}
	if from == to {
		return usagef("%s and %s are the same stream", args[1], args[2])
	}
	t, err := a.open(ctx, args[0], at)
	if err != nil {
		return err
	}
	moved, err := t.Move(ctx, t.file(), from, to, count.value)
	if asJSON && (moved > 0 || err == nil) {
		printed := a.printJSON(struct {
			Count uint64 `json:"count"`
		}{moved})
		if err == nil {
			err = printed
		}
	}
	switch {
	case err != nil && moved > 0:
		return fmt.Errorf("%s %s: %w (%d records were moved)", t.arg, from, cause(ctx, err), moved)
	case err != nil:
		return fmt.Errorf("%s %s: %w", t.arg, from, cause(ctx, err))
	case moved == 0:
		return fmt.Errorf("%s %s: %w", t.arg, from, gearsfs.ErrEmpty)
	case count.set && !count.all && moved < count.value:
		return fmt.Errorf("%s %s: %w", t.arg, from, gearsfs.ErrEmpty.Because("the stream is empty: %d of %d records were moved", moved, count.value))
	}
	return nil
}

func (a *app) cpCommand() *cobra.Command {
	var at string
	c := &cobra.Command{
		Use:   "cp FILE TO",
		Short: "Copy a file with all its streams",
		Long: `Copy a file with all its streams as they are at one moment: TO never shows a part of what
was done in one step. A file that is there is replaced; where TO is a directory the copy is
made in it. Leases and delays are not copied: what is leased can be taken from the copy.`,
		Example: `  gearsfs cp gears/jobs gears/jobs.yesterday
  gearsfs cp :/jobs :/archive`,
		Args: exactly(2),
		RunE: func(c *cobra.Command, args []string) error { return a.cp(c.Context(), at, args[0], args[1]) },
	}
	nodeFlag(c.Flags(), &at)
	return c
}

func (a *app) cp(ctx context.Context, at, fromArg, toArg string) error {
	from, err := a.open(ctx, fromArg, at)
	if err != nil {
		return err
	}
	to, err := a.open(ctx, toArg, at)
	if err != nil {
		return err
	}
	if from.Manager != to.Manager {
		return gearsfs.ErrInvalid.Because("%s and %s must be named through the same node, as parts of one volume", fromArg, toArg)
	}
	attr, err := to.Resolve(ctx, to.path, true)
	switch {
	case err != nil && !errors.Is(err, gearsfs.ErrNotFound):
		return fmt.Errorf("%s: %w", toArg, cause(ctx, err))
	case err == nil && attr.Mode&unix.S_IFMT == unix.S_IFDIR:
		_, name, err := split(from.path)
		if err != nil {
			return err
		}
		to.path = filepath.Join(to.path, name)
	}
	if err := from.CopyFile(ctx, from.file(), to.file()); err != nil {
		return fmt.Errorf("%s to %s: %w", fromArg, toArg, cause(ctx, err))
	}
	return nil
}
