package main

import (
	"runtime"

	"github.com/gearsfs/gearsfs/cmd/internal/node"
	"github.com/spf13/cobra"
)

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version",
		Long:    "Print the version of this program, of Go, and the platform.",
		Example: "  gearsfs version",
		Args:    exactly(0),
		RunE: func(*cobra.Command, []string) error {
			return a.printf("gearsfs %s %s %s/%s\n", node.Version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
		},
	}
}

func (a *app) completionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "completion SHELL", Short: "Print a completion script for bash, zsh, fish or powershell",
		Long:    "Print a script that lets a shell complete gearsfs commands: bash, zsh, fish or powershell.",
		Example: "  source <(gearsfs completion bash)",
		Args:    exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			root := c.Root()
			var err error
			switch args[0] {
			case "bash":
				err = root.GenBashCompletionV2(a.out, true)
			case "zsh":
				err = root.GenZshCompletion(a.out)
			case "fish":
				err = root.GenFishCompletion(a.out, true)
			case "powershell":
				err = root.GenPowerShellCompletionWithDesc(a.out)
			default:
				return usagef("%q is none of bash, zsh, fish and powershell", args[0])
			}
			if err != nil {
				return outputError(err)
			}
			return nil
		},
	}
}
