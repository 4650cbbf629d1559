package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/cmd/internal/units"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

type eachOptions struct {
	node    string
	and     streamsFlag
	puts    streamsFlag
	lines   bool
	jobs    positiveFlag
	count   positiveFlag
	noWait  bool
	rate    rateFlag
	timeout units.Duration
	tries   limitFlag
	seal    bool
	force   bool
}

// triesDefault is after how many failures a record goes to KEY.dead, where
// neither --tries nor the stream's settings say.
const triesDefault = 5

func (a *app) eachCommand() *cobra.Command {
	var o eachOptions
	c := &cobra.Command{
		Use:   "each FILE KEY [--and FILE KEY]... [--put FILE KEY]... [flags] -- COMMAND [ARG]...",
		Short: "Run a command for each record of a stream",
		Long: `Take records and run COMMAND for each of them, or with --and for each complete set of the
inputs' first records; any number of workers may, on any machines. The first input is
COMMAND's standard input, and its text replaces {} in the ARGs (without its last newline);
all of them are the files $GEARSFS_IN/0, $GEARSFS_IN/1 and so on.

Where COMMAND ends with status 0, what it wrote to standard output is put as one record
into each --put (-l: one per line, none where nothing was written), what it wrote to a file
$GEARSFS_OUT/KEY into the stream KEY of the first --put's FILE, and the inputs are
acknowledged: all in one transaction. However workers, nodes and machines die, no result is
lost and none is there twice. All streams must be in one volume, and what one run writes
has at most 16 MiB.

Any other status is a failure, an end by signal N counts as 128+N, and so do longer than
--timeout and more than 16 MiB written to what is to be put. To leave the input unread is
none: it is a file. After a failure the records go back, to be taken again after 1 s, 2 s,
4 s and so on; after --tries they go to KEY.dead, whence move brings them back.
While COMMAND runs its leases are extended; if one is lost, its process group is killed and
what it wrote is dropped. What it leaves running in its process group is killed when it
ends. With -j, standard error comes run by run.

each ends when the input is sealed and drained, and with --seal then seals the outputs,
whichever worker is last: what --put names, and what workers with --seal have written as
$GEARSFS_OUT/KEY (noted until then in the stream KEY.outputs of the input). The first ^C or
SIGTERM starts no more runs, the second gives back what runs. The status is 1 where a record
died, 127 where COMMAND is not found and 126 where it can't be run: no record is blamed for
that.`,
		Example: `  ls *.png | gearsfs put gears/jobs data -l --seal
  gearsfs each gears/jobs data -j 4 -- sh -c 'convert "$1" "${1%.png}.jpg"' - {}
  gearsfs each :/words line -l --put :/words word --seal -- tr -s ' ' '\n'
  gearsfs each :/l done --and :/r done --put :/all done -- sh -c 'cat $GEARSFS_IN/*'`,
		Args: apart(atLeast(0), ""),
		RunE: func(c *cobra.Command, args []string) error {
			words, command, err := beforeDash(c, args, 2)
			if err != nil {
				return err
			}
			return notRun(a.each(c.Context(), o, streamArg{words[0], words[1]}, command))
		},
	}
	f := c.Flags()
	nodeFlag(f, &o.node)
	f.Var(&o.and, "and", "another input: a run waits for a record of each")
	f.Var(&o.puts, "put", "put what COMMAND writes to standard output there")
	f.BoolVarP(&o.lines, "lines", "l", false, "one record per line that is written")
	f.VarP(&o.jobs, "jobs", "j", "run so many at a time (default 1)")
	f.VarP(&o.count, "count", "n", "end after so many runs")
	f.BoolVar(&o.noWait, "no-wait", false, "end when the input is empty")
	f.Var(&o.rate, "rate", "start at most so many runs a second (N/m: a minute, N/h: an hour)")
	f.Var(&o.timeout, "timeout", "kill a run that takes longer; it has failed")
	f.Var(&o.tries, "tries", "after so many failures a record goes to KEY.dead (default what set says, else 5; 0: never)")
	f.BoolVar(&o.seal, "seal", false, "seal the outputs when the input is drained")
	f.BoolVar(&o.force, "force", false, "also take from a file that was written as blocks rather than put")
	return c
}

// beforeDash splits a command's arguments at --: so many words, then COMMAND.
func beforeDash(c *cobra.Command, args []string, words int) (before, command []string, err error) {
	n := c.ArgsLenAtDash()
	switch {
	case n < 0:
		return nil, nil, usagef("which COMMAND? it follows --: %s", c.UseLine())
	case n < words:
		return nil, nil, usagef("too few arguments: %s", c.UseLine())
	case n > words:
		return nil, nil, usagef("too many arguments: %s", c.UseLine())
	case n == len(args):
		return nil, nil, usagef("no COMMAND follows --: %s", c.UseLine())
	}
	return args[:n], args[n:], nil
}

// jobsMax is how many runs a worker has at once at most: each has a directory and a
// few descriptors.
const jobsMax = 4096

// streamArg is FILE KEY on a command line.
type streamArg struct{ file, key string }

// streamsFlag is a flag whose values are two arguments each, FILE KEY; pairUp
// makes them one.
type streamsFlag []streamArg

var _ pflag.Value = (*streamsFlag)(nil)

func (f *streamsFlag) Type() string   { return "FILE KEY" }
func (f *streamsFlag) String() string { return "" }

func (f *streamsFlag) Set(s string) error {
	file, key, ok := strings.Cut(s, "\x00")
	if !ok {
		return errors.New("FILE KEY must follow")
	}
	*f = append(*f, streamArg{file, key})
	return nil
}

// pairUp joins, in the arguments of each, what streamsFlags are given to one
// argument, with NUL in between, which no argument contains.
func pairUp(args []string) []string {
	if len(args) == 0 || args[0] != "each" {
		return args
	}
	var joined []string
	for i := 0; i < len(args); i++ {
		if args[i] == "--" {
			return append(joined, args[i:]...)
		}
		if (args[i] == "--and" || args[i] == "--put") && i+2 < len(args) && args[i+1] != "--" && args[i+2] != "--" {
			joined = append(joined, args[i]+"="+args[i+1]+"\x00"+args[i+2])
			i += 2
			continue
		}
		joined = append(joined, args[i])
	}
	return joined
}

func (a *app) each(ctx context.Context, o eachOptions, first streamArg, command []string) error {
	if o.timeout.Given && o.timeout.Value <= 0 {
		return usagef("--timeout needs a time")
	}
	if o.seal && len(o.puts) == 0 {
		return usagef("--seal is for the outputs: --put names them")
	}
	if o.jobs.value > jobsMax {
		return usagef("-j is at most %d", jobsMax)
	}
	path, err := lookCommand(command[0])
	if err != nil {
		return err
	}
	w := newWorker(a)
	w.board = startBoard(a)
	defer w.board.end()
	for _, in := range append([]streamArg{first}, o.and...) {
		s, err := a.openStream(ctx, in, o.node, units.Duration{})
		if err != nil {
			return err
		}
		tries, err := s.tries(ctx, o.tries)
		if err != nil {
			return err
		}
		w.inputs = append(w.inputs, source{volumeStream: s, keys: []gearsfs.Key{s.key}, tries: tries})
	}
	for _, out := range o.puts {
		s, err := a.openStream(ctx, out, o.node, units.Duration{})
		if err != nil {
			return err
		}
		w.outputs = append(w.outputs, s)
	}
	if err := w.oneVolume(); err != nil {
		return err
	}
	w.jobs = 1
	if o.jobs.set {
		w.jobs = int(o.jobs.value)
	}
	w.limit, w.noWait, w.force = o.count.value, o.noWait, o.force
	w.every, w.lines, w.seal = o.rate.every, o.lines, o.seal
	w.spec = runSpec{
		path: path, args: command, outputs: len(w.outputs) > 0, timeout: o.timeout.Value,
		grouped: w.jobs > 1 || w.board.terminal,
	}
	return w.work(ctx)
}

// openStream resolves FILE KEY and connects to its node; wait is --wait.
func (a *app) openStream(ctx context.Context, arg streamArg, at string, wait units.Duration) (volumeStream, error) {
	key, err := parseKey(arg.key)
	if err != nil {
		return volumeStream{}, err
	}
	t, err := a.openWithin(ctx, wait, arg.file, at)
	return volumeStream{t, key}, err
}

// volumeStream is a stream of a file in a volume.
type volumeStream struct {
	target
	key gearsfs.Key
}

func (s volumeStream) String() string { return s.arg + " " + string(s.key) }

// tries is how many deliveries a record of the stream has: as the flag says,
// else as the stream's settings do.
func (s volumeStream) tries(ctx context.Context, flag limitFlag) (uint32, error) {
	if flag.set {
		return neverIfZero(flag.count()), nil
	}
	info, err := s.Stream(ctx, s.file(), s.key)
	switch {
	case err != nil && !errors.Is(err, gearsfs.ErrNotFound):
		return 0, fmt.Errorf("%s: %w", s, cause(ctx, err))
	case info.Settings.Tries > 0:
		return info.Settings.Tries, nil
	}
	return triesDefault, nil
}

// takeExec is take --exec: a worker whose command is run by sh.
func (a *app) takeExec(ctx context.Context, o takeOptions, args []string) error {
	keys, err := parseKeys(args[1])
	if err != nil {
		return err
	}
	spec, err := shellSpec(o.exec)
	if err != nil {
		return err
	}
	w := newWorker(a)
	t, err := a.openWithin(ctx, o.wait, args[0], o.node)
	if err != nil {
		return err
	}
	in := source{volumeStream: volumeStream{t, keys[0]}, keys: keys}
	if in.tries, err = in.volumeStream.tries(ctx, o.tries); err != nil {
		return err
	}
	w.inputs, w.jobs, w.spec = []source{in}, 1, spec
	w.noWait, w.wait, w.force, w.limit = o.noWait, o.wait, o.force, 1
	w.taking = !o.follow
	switch {
	case o.follow:
		w.limit = 0
	case o.count.all:
		if w.limit, err = ready(ctx, t, keys); err != nil {
			return err
		}
		w.noWait = true
	case o.count.set:
		w.limit = o.count.value
	}
	err = w.work(ctx)
	if drained(err) && o.count.all && w.done > 0 {
		return nil
	}
	return err
}
