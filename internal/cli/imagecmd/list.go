package imagecmd

import (
	"errors"
	"fmt"
	"path"
	"strings"
	"time"

	"creel/internal/cli/command"
	"creel/internal/image"

	"github.com/distribution/reference"
	"github.com/docker/go-units"
	"github.com/spf13/cobra"
)

// row is what `creel image ls --format` templates see, with Docker's field
// names: one name of an image.
type row struct {
	ID, Repository, Tag, Digest, CreatedSince, CreatedAt, Size, Platform, Name string
}

var columns = command.Columns{Shown: 4, Fields: [][2]string{
	{"Name", "NAME"}, {"ID", "ID"}, {"CreatedSince", "CREATED"}, {"Size", "SIZE"},
	{"Repository", "REPOSITORY"}, {"Tag", "TAG"}, {"Digest", "DIGEST"}, {"CreatedAt", "CREATED AT"}, {"Platform", "PLATFORM"},
}}

const none = "<none>"

func newList(env Env) *cobra.Command {
	var list command.Listing
	var filters []string
	c := &cobra.Command{
		Use: "ls [flags] [NAME[:TAG]]", Short: "List images",
		Example: "  creel image ls\n  creel image ls -q --filter reference='tools/*'\n  creel image ls --format 'table {{.Repository}}\\t{{.Size}}' debian",
		Args:    cobra.MaximumNArgs(1), ValidArgsFunction: CompleteNames(env),
		RunE: func(c *cobra.Command, args []string) error {
			match, err := parseFilters(filters, args)
			if err != nil {
				return err
			}
			if env.Nothing(c.Context()) {
				return command.PrintList(env.Out, []row(nil), list, columns)
			}
			store, err := env.Open(c.Context())
			if err != nil {
				return err
			}
			images, err := store.List(c.Context())
			if err != nil {
				return err
			}
			return command.PrintList(env.Out, rowsOf(images, match, list), list, columns)
		},
	}
	list.Register(c.Flags())
	c.Flags().StringArrayVarP(&filters, "filter", "f", nil, "`key=value`: reference=PATTERN, dangling=true|false or label=KEY[=VALUE]")
	return c
}

// rowsOf has a row for each name that matches. By -q an image is listed once.
func rowsOf(images []image.Image, match command.Filters, list command.Listing) (rows []row) {
	for _, img := range images {
		names := img.Names
		if len(names) == 0 {
			names = []string{""}
		}
		for _, name := range names {
			if !matches(match, img, name) {
				continue
			}
			rows = append(rows, newRow(img, name, list.Long))
			if list.Quiet {
				break
			}
		}
	}
	return rows
}

func newRow(img image.Image, name string, long bool) row {
	r := row{
		ID: img.ID, Name: none, Repository: none, Tag: none, Digest: none, CreatedSince: command.Ago(img.Created),
		CreatedAt: img.Created.Format(time.RFC3339), Size: units.HumanSize(float64(img.SizeBytes)), Platform: img.Platform,
	}
	if !long {
		r.ID = command.ShortID(img.ID)
	}
	if name != "" {
		r.Name = name
		r.Repository, r.Tag = splitName(name)
	}
	for _, d := range img.Digests {
		if repo, digest, ok := strings.Cut(d, "@"); ok && (repo == r.Repository || r.Digest == none) {
			r.Digest = digest
		}
	}
	return r
}

// splitName takes a name apart; a colon before a slash is of a port.
func splitName(name string) (repository, tag string) {
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		return name[:i], name[i+1:]
	}
	return name, none
}

var filterKeys = command.FilterKeys{
	"reference": checkPattern,
	"dangling": func(v string) error {
		if v != "true" && v != "false" {
			return errors.New("want true or false")
		}
		return nil
	},
	"label": nil,
}

func checkPattern(p string) error {
	if _, err := path.Match(p, ""); err != nil {
		return fmt.Errorf("the pattern %q is malformed; want a name, or one with * in it", p)
	}
	return nil
}

// byName is the key of a name that is given without --filter.
const byName = "name"

func parseFilters(list, args []string) (command.Filters, error) {
	out, err := filterKeys.Parse(list)
	if err != nil {
		return nil, err
	}
	for _, arg := range args {
		if err := checkPattern(arg); err != nil {
			return nil, err
		}
		out[byName] = append(out[byName], arg)
	}
	return out, nil
}

func matches(f command.Filters, img image.Image, name string) bool {
	like := func(pattern string) bool {
		named, err := reference.ParseNormalizedNamed(name)
		if err != nil {
			return false
		}
		ok, err := reference.FamiliarMatch(pattern, named)
		repository, _ := splitName(name)
		return err == nil && ok || pattern == repository
	}
	return f.Match(map[string]func(string) bool{
		byName: like, "reference": like,
		"dangling": func(v string) bool { return (name == "") == (v == "true") },
		"label": func(v string) bool {
			key, want, exact := strings.Cut(v, "=")
			got, set := img.Config.Labels[key]
			return set && (!exact || got == want)
		},
	})
}

// CompleteNames offers the names of images to the shell.
func CompleteNames(env Env) cobra.CompletionFunc {
	return func(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		store, err := env.Look(c.Context())
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		images, err := store.List(c.Context())
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		var names []string
		for _, img := range images {
			names = append(names, img.Names...)
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}
