package main

import "github.com/spf13/cobra"

func newProvisionerCommand() *cobra.Command { return &cobra.Command{Use: "provisioner"} }
