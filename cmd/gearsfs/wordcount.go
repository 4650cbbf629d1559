package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/gearsfs/gearsfs/cmd/internal/node"
	"github.com/gearsfs/gearsfs/dgm"
	"github.com/gearsfs/gearsfs/wordcount"
	"github.com/spf13/cobra"
)

type wordcountOptions struct {
	node   string
	top    int
	worker bool
}

func (a *app) wordcountCommand() *cobra.Command {
	var o wordcountOptions
	c := &cobra.Command{
		Use:   "wordcount FILE|-...",
		Short: "Count lines, words and bytes on another node",
		Long: `Count the lines, words and bytes of files, as LC_ALL=C wc -lwc does, on another node: one
node reads and sends lines, the other counts and acknowledges. Without --node both run in
this process, joined by sockets; with it the lines go to that node, whose workers count.
FILE is any file, - is standard input.`,
		Example: `  gearsfs wordcount --top 10 README.md
  gearsfs wordcount --node host:4096 --worker &
  gearsfs wordcount --node host:4096 big.log`,
		Args: func(c *cobra.Command, args []string) error {
			switch {
			case o.top < 0:
				return usagef("--top %d: a number of words from 0 on", o.top)
			case o.worker && o.node == "":
				return usagef("--worker counts for a node: name it with --node")
			case o.worker && (len(args) > 0 || o.top > 0):
				return usagef("--worker counts what others send: no FILE and no --top")
			case !o.worker:
				return atLeast(1)(c, args)
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			if o.worker {
				return a.wordcountWorker(c.Context(), o.node)
			}
			return a.wordcount(c.Context(), o, args)
		},
	}
	nodeFlag(c.Flags(), &o.node)
	c.Flags().IntVar(&o.top, "top", 0, "also print the `N` most frequent words")
	c.Flags().BoolVar(&o.worker, "worker", false, "count for whoever sends to the node, until ^C")
	return c
}

// wordcountWorker counts until ctx ends, which is how it is meant to end.
func (a *app) wordcountWorker(ctx context.Context, addrs string) error {
	m, err := a.manager(ctx, addrs)
	if err != nil {
		return err
	}
	return wordcount.Work(ctx, m, wordcount.WorkOptions{
		Done: func(run string, counted wordcount.Counts, err error) {
			if err != nil {
				a.notef("run %s was given up: %v", run, err)
				return
			}
			a.notef("run %s: counted %d lines, %d words, %d bytes", run, counted.Lines, counted.Words, counted.Bytes)
		},
	})
}

func (a *app) wordcount(ctx context.Context, o wordcountOptions, args []string) (err error) {
	inputs, err := a.openInputs(ctx, o.node, args)
	defer func() {
		for _, in := range inputs {
			err = errors.Join(err, in.close())
		}
	}()
	if err != nil {
		return err
	}
	s, end, err := a.sender(ctx, o.node)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end()) }()

	counter := counter{
		app: a, sender: s, top: o.top, several: len(inputs) > 1, width: columnWidth(inputs),
		rule: wordcount.InstalledRule(ctx), words: make(map[string]uint64),
	}
	for _, in := range inputs {
		if err := counter.count(ctx, in); err != nil {
			return fmt.Errorf("%s: %w", in.name, cause(ctx, err))
		}
	}
	return counter.finish()
}

// sender returns what sends to the node at addrs; without one to a second node
// in this process. end closes it and the nodes of this process.
func (a *app) sender(ctx context.Context, addrs string) (s *wordcount.Sender, end func() error, err error) {
	dir, err := os.MkdirTemp("", "gearsfs-wordcount")
	if err != nil {
		return nil, nil, fmt.Errorf("a place for the sender's node: %w", err)
	}
	var volumes []*dgm.Volume
	end = func() error {
		var errs []error
		if s != nil {
			errs = append(errs, s.Close())
		}
		for _, v := range volumes {
			errs = append(errs, v.Close())
		}
		return errors.Join(append(errs, os.RemoveAll(dir))...)
	}
	open := func(name string) (*dgm.Volume, error) {
		v, err := node.OpenVolume(ctx, node.Config{Data: filepath.Join(dir, name), Name: name}, func(err error) {
			a.notef("node %s can't go on: %v", name, err)
			os.Exit(exitFailed)
		})
		if err == nil {
			volumes = append(volumes, v)
		}
		return v, err
	}
	sending, err := open("a")
	if err == nil {
		if addrs == "" {
			var counting *dgm.Volume
			if counting, err = open("b"); err == nil {
				s, err = wordcount.Join(ctx, sending, counting)
			}
		} else {
			s, err = a.connect(ctx, sending, addrs)
		}
	}
	if err != nil {
		return nil, nil, errors.Join(cause(ctx, err), end())
	}
	return s, end, nil
}

func (a *app) connect(ctx context.Context, sending *dgm.Volume, addrs string) (*wordcount.Sender, error) {
	o, err := a.remoteOptions()
	if err != nil {
		return nil, err
	}
	return wordcount.Connect(ctx, sending, addrs, o)
}

// input is one file to count.
type input struct {
	io.Reader
	name  string
	size  int64 // -1 where it is not a regular file
	close func() error
}

// openInputs opens all files before the first is counted. What it could open
// it returns also with an error.
func (a *app) openInputs(ctx context.Context, at string, args []string) ([]input, error) {
	var inputs []input
	for _, arg := range args {
		in, err := a.openInput(ctx, at, arg)
		if err != nil {
			return inputs, err
		}
		inputs = append(inputs, in)
	}
	return inputs, nil
}

// openInput opens a local file, or, where its name is that of none, one in the
// volume of a node.
func (a *app) openInput(ctx context.Context, at, arg string) (input, error) {
	if arg == "-" {
		return input{Reader: a.in, name: arg, size: -1, close: func() error { return nil }}, nil
	}
	f, err := os.Open(arg)
	if err == nil {
		info, err := f.Stat()
		if err == nil && info.IsDir() {
			err = &os.PathError{Op: "read", Path: arg, Err: errors.New("is a directory")}
		}
		if err != nil {
			return input{}, errors.Join(err, f.Close())
		}
		size := int64(-1)
		if info.Mode().IsRegular() {
			size = info.Size()
		}
		return input{Reader: f, name: arg, size: size, close: f.Close}, nil
	}
	if _, _, remote := splitRemote(arg); !remote && !isVolumePath(arg) {
		return input{}, err
	}
	t, err := a.open(ctx, arg, at)
	if err != nil {
		return input{}, err
	}
	v, err := openVolumeFile(ctx, t)
	if err != nil {
		return input{}, fmt.Errorf("%s: %w", arg, cause(ctx, err))
	}
	return input{Reader: v, name: arg, size: int64(v.size), close: v.close}, nil
}

// columnWidth is wc's: the digits of all sizes together, and 7 where one of
// them can't be known.
func columnWidth(inputs []input) int {
	var sum int64
	least := 1
	for _, in := range inputs {
		if in.size < 0 {
			least = 7
		}
		sum += max(in.size, 0)
	}
	return max(least, len(strconv.FormatInt(sum, 10)))
}

// counter counts inputs one after the other and prints their figures.
type counter struct {
	*app
	sender  *wordcount.Sender
	top     int
	several bool
	width   int
	rule    wordcount.Rule
	total   wordcount.Counts
	words   map[string]uint64 // the most frequent ones, of all inputs
}

func (c *counter) count(ctx context.Context, in input) error {
	bar := newBar(c.errs, in)
	o := wordcount.Options{Top: c.top, Rule: c.rule, Progress: bar.show}
	if c.top > 0 && c.several {
		o.Top = math.MaxInt // the most frequent of all files may be rare in each
	}
	result, err := c.sender.Count(ctx, in, o)
	bar.clear()
	if err != nil {
		return err
	}
	for _, w := range result.Top {
		c.words[w.Word] += w.Count
	}
	c.total = c.total.Add(result.Counts)
	return c.print(result.Counts, in.name)
}

func (c *counter) print(n wordcount.Counts, name string) error {
	return c.printf("%*d %*d %*d %s\n", c.width, n.Lines, c.width, n.Words, c.width, n.Bytes, c.shown(name))
}

// finish prints what is about all inputs.
func (c *counter) finish() error {
	if c.several {
		if err := c.print(c.total, "total"); err != nil {
			return err
		}
	}
	top := make([]wordcount.Frequency, 0, len(c.words))
	for word, n := range c.words {
		top = append(top, wordcount.Frequency{Word: word, Count: n})
	}
	slices.SortFunc(top, func(x, y wordcount.Frequency) int {
		return cmp.Or(cmp.Compare(y.Count, x.Count), cmp.Compare(x.Word, y.Word))
	})
	out := bufio.NewWriter(c.out)
	for _, w := range top[:min(c.top, len(top))] {
		fmt.Fprintf(out, "%*d %s\n", c.width, w.Count, c.shown(w.Word))
	}
	if err := out.Flush(); err != nil {
		return outputError(err)
	}
	return nil
}
