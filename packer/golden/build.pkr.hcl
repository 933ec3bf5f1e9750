# One provisioning for all of them: the hooks of elements/ in the order of diskimage-builder, in the
# running machine; then a boot of what they installed; then nothing of the build is left.
build {
  sources = [
    "source.qemu.golden",
    "source.virtualbox-iso.golden",
    "source.vmware-iso.golden",
  ]

  provisioner "file" {
    source      = var.hooks
    destination = "/tmp/hooks.tar"
  }

  provisioner "shell" {
    script           = "${var.provision}/install"
    environment_vars = var.environment
    execute_command  = "env {{ .Vars }} bash {{ .Path }}"
  }

  provisioner "shell" {
    script            = "${var.provision}/reboot"
    execute_command   = "bash {{ .Path }}"
    expect_disconnect = true
  }

  provisioner "shell" {
    script           = "${var.provision}/finish"
    environment_vars = var.environment
    execute_command  = "env {{ .Vars }} bash {{ .Path }}"
    pause_before     = "5s"
  }
}
