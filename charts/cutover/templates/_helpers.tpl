{{- define "cutover.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains "cutover" .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-cutover" .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "cutover.labels" -}}
app.kubernetes.io/name: cutover
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: cutover
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* Labels that select: (dict "root" $ "component" "operator") */}}
{{- define "cutover.selector" -}}
app.kubernetes.io/name: cutover
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* One of our own images: (dict "root" $ "image" "cutover-server:0.1.0") */}}
{{- define "cutover.image" -}}
{{- with .root.Values.images.registry }}{{ trimSuffix "/" . }}/{{ end }}{{ .image }}
{{- end -}}

{{- define "cutover.authSecret" -}}
{{- .Values.auth.existingSecret | default (printf "%s-auth" (include "cutover.fullname" .)) -}}
{{- end -}}

{{/* Tasks of the gateways and of assessments.task by name, as YAML. The same name twice must be the same task. */}}
{{- define "cutover.tasks" -}}
{{- $tasks := dict -}}
{{- $all := list -}}
{{- range .Values.gateways }}{{- $all = append $all .task }}{{- end -}}
{{- with .Values.assessments.task }}{{- $all = append $all . }}{{- end -}}
{{- range $all -}}
{{- if and (hasKey $tasks .name) (ne (toJson (get $tasks .name)) (toJson .)) -}}
{{- fail (printf "two different tasks are named %q; give one of them another name" .name) -}}
{{- end -}}
{{- $_ := set $tasks .name . -}}
{{- end -}}
{{- toYaml $tasks -}}
{{- end -}}

{{/* "yes" when the assessments service is part of this release. */}}
{{- define "cutover.assessmentsEnabled" -}}
{{- if and .Values.assessments.enabled (include "cutover.tasks" . | fromYaml) }}yes{{ end -}}
{{- end -}}

{{- define "cutover.assessmentsUrl" -}}
{{- if .Values.assessments.enabled -}}
http://{{ include "cutover.fullname" . }}-assessments:8080
{{- else -}}
{{- required "assessments.url: name the assessments service, or set assessments.enabled" .Values.assessments.url -}}
{{- end -}}
{{- end -}}

{{- define "cutover.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "cutover.containerSecurity" -}}
allowPrivilegeEscalation: false
capabilities:
  drop: [ALL]
readOnlyRootFilesystem: true
{{- end -}}

{{/* Pod annotations: (dict "root" $ "port" 9090 "more" .podAnnotations) */}}
{{- define "cutover.podAnnotations" -}}
{{- if .root.Values.monitoring.annotations }}
prometheus.io/scrape: "true"
prometheus.io/port: {{ .port | quote }}
prometheus.io/path: /metrics
{{- end }}
{{- with .more }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "cutover.pullSecrets" -}}
{{- with .Values.images.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "cutover.placement" -}}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Pods of one component on different nodes where there are some: the selecting labels as YAML */}}
{{- define "cutover.spread" -}}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- . | nindent 8 }}
{{- end -}}

{{/* A NetworkPolicy's rule; none where nobody is named, for without peers it would let everybody in:
(dict "port" 8080 "peers" (list ...)) */}}
{{- define "cutover.ingressRule" -}}
{{- if .peers -}}
- ports:
    - port: {{ .port }}
      protocol: TCP
  from:
    {{- toYaml .peers | nindent 4 }}
{{- end -}}
{{- end -}}

{{- define "cutover.podIdentity" -}}
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: POD_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
{{- end -}}

{{/* Namespaces the operator works in, as a JSON list; empty when it watches all of them. */}}
{{- define "cutover.namespaces" -}}
{{- if .Values.operator.namespaced -}}
{{- .Values.operator.namespaces | default (list .Release.Namespace) | uniq | toJson -}}
{{- else -}}
[]
{{- end -}}
{{- end -}}

{{/* Bytes that are four fifths of a volume's size such as 5Gi: the rest is for the file system and dead letters. */}}
{{- define "cutover.spoolBytes" -}}
{{- $units := dict "M" 1000000 "G" 1000000000 "T" 1000000000000 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 -}}
{{- $unit := regexFind "[A-Za-z]+$" . -}}
{{- div (mul (trimSuffix $unit . | int64) (get $units $unit | int64) 4) 5 -}}
{{- end -}}
