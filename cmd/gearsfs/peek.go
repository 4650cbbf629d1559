package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/cmd/internal/units"
	"github.com/gearsfs/gearsfs/dgm"
	"github.com/spf13/cobra"
)

type peekOptions struct {
	node   string
	count  countFlag
	noWait bool
	wait   units.Duration
	follow bool
	after  afterFlag
	last   bool
	cursor string
	exec   string
	format recordFormat
}

func (a *app) peekCommand() *cobra.Command {
	var o peekOptions
	c := &cobra.Command{
		Use:   "peek FILE KEY",
		Short: "Read records of a stream without removing them",
		Long: `Write the record at the head of a stream to standard output and leave it there; with
--after the first that is newer than a seq, with --last the newest. Where there is none
peek waits, also for a file or key that does not exist yet (its directory must).
-n all and -f show every record that is in the stream, also those that are leased; -f
follows it as a log and ends where it is sealed. With --cursor the next peek with the same
PATH goes on behind what this one has shown, whatever happened in between; --after then
says where the first begins. With --exec COMMAND is run by sh for each record, which is its
standard input; one that fails ends peek (status 1).`,
		Example: `  gearsfs peek gears/jobs data
  gearsfs peek gears/jobs data -n all -o json
  gearsfs peek :/config main --last
  gearsfs peek :/log data -f --after end
  gearsfs peek :/log data -f --cursor ~/.log-seen --exec 'mail -s "$GEARSFS_SEQ" me'`,
		Args: apart(exactly(2), "wait no-wait", "count follow", "count last", "after last", "cursor last", "exec "+formatsApart),
		RunE: func(c *cobra.Command, args []string) error {
			for name, value := range map[string]string{"exec": o.exec, "cursor": o.cursor} {
				if c.Flags().Changed(name) && value == "" {
					return usagef("--%s is empty", name)
				}
			}
			return a.peek(c.Context(), o, args)
		},
	}
	f := c.Flags()
	nodeFlag(f, &o.node)
	f.VarP(&o.count, "count", "n", "show this many, waiting for each, or all that are there now (default 1)")
	f.BoolVar(&o.noWait, "no-wait", false, "give up at once where there is no record (status 3)")
	f.Var(&o.wait, "wait", "give up after waiting this long for a record (status 3)")
	f.BoolVarP(&o.follow, "follow", "f", false, "go on until the stream is sealed; with --no-wait until its end")
	f.Var(&o.after, "after", "begin behind this seq, or behind the newest record")
	f.StringVar(&o.cursor, "cursor", "", "remember the place in the file `PATH`")
	f.StringVar(&o.exec, "exec", "", "have sh run `COMMAND` for each record")
	f.BoolVar(&o.last, "last", false, "the newest record")
	o.format.flags(c)
	return c
}

func (a *app) peek(ctx context.Context, o peekOptions, args []string) error {
	key, err := parseKey(args[1])
	if err != nil {
		return err
	}
	t, err := a.openWithin(ctx, o.wait, args[0], o.node)
	if err != nil {
		return err
	}
	p := &peeker{
		app: a, target: t, key: key, noWait: o.noWait, wait: o.wait,
		left: 1, endless: o.follow, after: o.after.value, last: o.last,
		byAge: o.after.set || o.count.all || o.cursor != "" || o.follow && !o.last,
	}
	if o.cursor != "" {
		if p.cursor, err = openCursor(o.cursor); err != nil {
			return err
		}
		if p.cursor.known {
			p.after, o.after.end = p.cursor.seq, false
		}
	}
	if o.count.set && !o.count.all {
		p.left = o.count.value
	}
	if o.count.all || o.after.end {
		if err := p.boundBy(ctx, o); err != nil {
			return err
		}
	}
	var out shower = &sink{out: a.out, format: o.format}
	if o.exec != "" {
		runs, err := a.startExec(o.exec)
		if err != nil {
			return err
		}
		defer runs.close()
		out = runs
	}
	err = p.run(ctx, out)
	if p.shown == 0 {
		err = p.why(ctx, err)
	}
	switch {
	case drained(err) && (o.follow || o.count.all && p.shown > 0):
		return nil
	case err != nil:
		return fmt.Errorf("%s %s: %w", t.arg, key, err)
	}
	return nil
}

// why says more of ErrEmpty: that there is no file, no stream, or nothing new.
func (p *peeker) why(ctx context.Context, err error) error {
	if errors.Is(err, gearsfs.ErrEmpty) && p.after > 0 {
		return gearsfs.ErrEmpty.Because("the stream is empty behind record %d", p.after)
	}
	return missing(ctx, p.target, []gearsfs.Key{p.key}, err)
}

// shower does something with records, in order. It returns how many it has done
// it with: fewer only with an error.
type shower interface {
	write(ctx context.Context, records []gearsfs.Record) (int, error)
}

// peeker shows records in the order of the stream.
type peeker struct {
	*app
	target
	key     gearsfs.Key
	noWait  bool
	wait    units.Duration
	left    uint64 // to show; with endless always 1
	endless bool
	last    bool        // begin with the newest record
	byAge   bool        // show what is newer than after, leased or not
	after   gearsfs.Seq // the newest record shown
	until   gearsfs.Seq // where not 0: show none from this seq on
	cursor  *cursor     // nil: remember nothing

	shown  uint64
	looked bool // the first look at the stream is behind us
}

// boundBy makes `-n all` end with, and `--after end` begin behind, the newest
// record that is there now.
func (p *peeker) boundBy(ctx context.Context, o peekOptions) error {
	info, err := p.Stream(ctx, p.file(), p.key)
	if err != nil && !errors.Is(err, gearsfs.ErrNotFound) {
		return cause(ctx, err)
	}
	end := max(info.Tail.Seq, 1)
	if o.after.end {
		p.after = end - 1
	}
	if o.count.all {
		p.until, p.noWait, p.left = end, true, 1<<63
	}
	return nil
}

func (p *peeker) run(ctx context.Context, s shower) error {
	for p.left > 0 {
		records, err := p.next(ctx)
		if err != nil {
			return err
		}
		past := false
		if p.until > 0 {
			n := len(records)
			for n > 0 && records[n-1].Place.Seq >= p.until {
				n--
			}
			past = n < len(records) || n > 0 && records[n-1].Place.Seq == p.until-1
			records = records[:n]
		}
		n, err := p.show(ctx, s, records)
		if err != nil {
			return err
		}
		if past {
			return nil
		}
		if !p.endless {
			p.left -= uint64(n)
		}
	}
	return nil
}

// show shows records and moves the cursor behind them: at once, or where a
// command is run for each of them, one after the other.
func (p *peeker) show(ctx context.Context, s shower, records []gearsfs.Record) (shown int, err error) {
	step := len(records)
	if _, ok := s.(*execRuns); ok {
		step = 1
	}
	for shown < len(records) && err == nil {
		var n int
		n, err = s.write(ctx, records[shown:shown+step])
		shown += n
		p.shown += uint64(n)
		if n > 0 && p.cursor != nil {
			if failed := p.cursor.move(records[shown-1].Place.Seq); failed != nil {
				err = errors.Join(err, failed)
			}
		}
	}
	return shown, err
}

// next returns the records to show next, waiting for the first of them.
func (p *peeker) next(ctx context.Context) ([]gearsfs.Record, error) {
	peek := dgm.Peek{
		File: p.file(), Key: p.key, Max: int(min(p.left, takeBatchMax)),
		NoWait: p.noWait || !p.looked,
		Follow: p.byAge, After: p.after, Last: p.last,
	}
	if p.endless && !p.last {
		peek.Max = takeBatchMax
	}
	ask := func(ctx context.Context) ([]gearsfs.Record, error) { return p.Peek(ctx, peek) }
	waiting, cancel := waitContext(ctx, p.wait, "nothing came")
	defer cancel()
	records, err := waitFor(waiting, p.target, ask)
	if errors.Is(err, gearsfs.ErrEmpty) && !p.noWait && !p.looked {
		p.noteMissing(waiting, p.target, []gearsfs.Key{p.key})
		peek.NoWait = false
		records, err = waitFor(waiting, p.target, ask)
	}
	if err != nil {
		return nil, cause(waiting, err)
	}
	p.looked = true
	p.last, p.byAge, p.after = false, true, records[len(records)-1].Place.Seq
	return records, nil
}
